"""The terms that TotalSegmentator's weights come under, and who may have them.

Source: the README of TotalSegmentator 2.18, section Subtasks, and `commercial_models` of its map_to_binary.py. Nothing
here knows a licence number: what is asked is only whether the site has set one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from heimdallr_ray.errors import LicenceRequired
from heimdallr_ray.segmentation.archives import Archive

SETTING: Final = "HEIMDALLR_TOTALSEGMENTATOR_LICENCE"
ACADEMIC_PAGE: Final = "https://backend.totalsegmentator.com/license-academic/"
PROJECT_PAGE: Final = "https://github.com/wasserth/TotalSegmentator"


@dataclass(frozen=True)
class Terms:
    """What a model's weights may be used for.

    Attributes:
        name: short, for a column.
        words: for whoever is about to download them.
    """

    name: str
    words: str


OPEN: Final = Terms(
    "Apache-2.0",
    "Apache-2.0: TotalSegmentator offers these weights for any usage. They are no medical device. "
    f"Cite the papers that {PROJECT_PAGE} names.",
)
LICENSED: Final = Terms(
    "TotalSegmentator licence",
    "Licensed: these weights need a TotalSegmentator licence of your site. One for non-commercial use is free: "
    f"{ACADEMIC_PAGE}. For commercial use write to the contact that {PROJECT_PAGE} names. "
    f"Then set {SETTING}.",
)
NON_COMMERCIAL: Final = Terms(
    "CC-BY-NC-4.0",
    "CC BY-NC 4.0: the authors of these weights allow no commercial use, and a hospital's care may be one. "
    f"Read {PROJECT_PAGE} before you use them.",
)


def terms_of(archive: Archive) -> Terms:
    """The terms of one archive."""
    if archive.licensed:
        return LICENSED
    return OPEN if archive.commercial_use else NON_COMMERCIAL


def require_licence(archives: Iterable[Archive], *, licensed: bool) -> None:
    """Nothing happens where the site may have all of `archives`.

    Args:
        archives: what it is about to install.
        licensed: the site has set a licence number.

    Raises:
        LicenceRequired: one of them is licensed and the site is not; says where a licence is to be had.
    """
    needing = [archive.folder for archive in archives if archive.licensed]
    if needing and not licensed:
        raise LicenceRequired(f"{', '.join(needing)}: {LICENSED.words}")
