"""Several objects under one SOP Instance UID: a whole one is as good as sent again, a cut one beside it is not used."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from heimdallr_ray.dicom.codestream import fragments
from heimdallr_ray.dicom.grouping import IndexedInstance
from heimdallr_ray.dicom.read import is_cut
from heimdallr_ray.errors import HeimdallrError


def without_cut_copies(
    instances: Sequence[IndexedInstance], read_bytes: Callable[[str], bytes]
) -> tuple[IndexedInstance, ...]:
    """The instances in their order, without those that end inside their pixels where a whole one has the same UID.

    A sender that broke off and sends again leaves both. Where no copy is whole all stay, and whoever reads their pixels
    says so; several whole ones that differ are for `assemble.assemble` to judge.

    Args:
        instances: of one study.
        read_bytes: the bytes of a locator; called for compressed copies only, which tell in no other way.
    """
    copies: defaultdict[str | None, list[IndexedInstance]] = defaultdict(list)
    for one in instances:
        copies[one.header.sop_uid].append(one)
    dropped: set[str] = set()
    for uid, several in copies.items():
        if uid is not None and len(several) > 1:
            cut = {one.locator for one in several if _ends_early(one, read_bytes)}
            if len(cut) < len(several):
                dropped |= cut
    return tuple(one for one in instances if one.locator not in dropped)


def _ends_early(one: IndexedInstance, read_bytes: Callable[[str], bytes]) -> bool:
    pixels = one.header.pixels
    if is_cut(one.header, one.size):
        return True
    if pixels is None or pixels.length is not None:
        return False
    try:
        fragments(read_bytes(one.locator), pixels.offset)
    except HeimdallrError:
        return True
    return False
