"""What tells an object's study, series and instance, read from the first bytes of its file as quickly as Python can.

`read_header` reads everything that the package uses and takes half a millisecond; a listener needs twenty attributes of
each of a thousand objects a second. What is not written as nearly everybody writes it goes to `read_header`; of the
rest it says the same, since the images of a study are told by both: by this one when they come, by the other one later.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, NamedTuple

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.alike import Layouts, Span
from heimdallr_ray.dicom.elements import IMPLICIT, UNDEFINED, Element, Encoding, NeedMore, Walk
from heimdallr_ray.dicom.header import SYNTHETIC_CREATOR, Header
from heimdallr_ray.dicom.read import DEFLATED_LE, EXPLICIT_BE, encoding_of, read_head
from heimdallr_ray.dicom.values import Values
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.ids import Uid

_SOP_CLASS: Final = 0x00080016
_SOP_INSTANCE: Final = 0x00080018
_CHARACTER_SET: Final = 0x00080005
_PRIORITY: Final = 0x00401003
_PER_FRAME: Final = 0x52009230
_PIXELS: Final = 0x7FE00008
"""The first tag of pixels of any kind: where `read_header` ends, whatever lies behind."""
_SHARED: Final = frozenset(
    {
        _CHARACTER_SET,
        *(0x00080020, 0x00080030, 0x00080050, 0x00080060, 0x00080070, 0x00081030, 0x0008103E),
        *(0x00100010, 0x00100020, 0x00100030, 0x00100040, 0x00180015, 0x00181210),
        *(0x0020000D, 0x0020000E, 0x00200011, 0x00201208, 0x00280010, _PRIORITY),
    }
)
"""Attributes that the images of one series have in common."""
_SOP_UIDS: Final = frozenset({_SOP_CLASS, _SOP_INSTANCE})
_META_GROUP: Final = b"\x02\x00"
"""A data set that begins with it is read as more file meta information, which may name another transfer syntax."""
_NOWHERE: Final = (0, 0)
_SOUGHT: Final = _SHARED | _SOP_UIDS | {_PER_FRAME}
_MAX_BYTES: Final = 8 * limits.MAX_ELEMENTS_OF_ONE_LEVEL
"""No more elements than the bounds of `read_header` allow are in so many bytes: they need not be counted here."""
_LONG_VRS: Final = frozenset(
    {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
)
_SHORT_VRS: Final = frozenset(
    {
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT"),
        *(b"PN", b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    }
)
_EXPLICIT = struct.Struct("<HH2sH").unpack_from
_IMPLICIT = struct.Struct("<HHI").unpack_from
_LENGTH = struct.Struct("<I").unpack_from


@dataclass(frozen=True, slots=True)
class IdentityFacts:
    """What the images of a series share: as the fields of the same names in `Header`."""

    study_uid: Uid | None
    series_uid: Uid | None
    modality: str
    series_number: int | None
    series_description: str
    body_part: str
    kernel: str
    rows: int | None
    patient_id: str
    patient_name: str
    patient_birth_date: str
    patient_sex: str
    study_date: str
    study_time: str
    study_description: str
    accession_number: str
    requested_priority: str
    synthetic: bool
    n_related_instances: int | None = None


_alike = Layouts[tuple[IdentityFacts, Uid, Span]]()


class Identified(NamedTuple):
    """One object: what it shares with its series, and what it does not."""

    facts: IdentityFacts | Header
    sop_class_uid: Uid | None
    sop_uid: Uid | None


def read_identity(head: bytes, size: int, offset: int, syntax: str) -> Identified | None:
    """The identity of the Part 10 object of `size` bytes that begins with `head`; None where more of it is needed.

    Args:
        head: its first bytes.
        size: of the whole object.
        offset: where its data set begins.
        syntax: its Transfer Syntax UID.

    Raises:
        NotDicom, TruncatedObject, TooLarge: as `read_header`.
    """
    if size <= limits.MAX_OBJECT_BYTES:
        found = read_quickly(head, offset, syntax, size)
        if found is not None:
            return found
    header = read_head(head, size)
    return None if header is None else Identified(header, header.sop_class_uid, header.sop_uid)


def read_quickly(head: bytes, offset: int, syntax: str, size: int | None = None) -> Identified | None:
    """As `read_identity`, of the first bytes alone; None too where the object is not written as nearly all are.

    What is said is what `read_header` says of the whole object: all before its pixels has been walked over. Without
    `size` an object may go on behind `head`.
    """
    if syntax in (DEFLATED_LE, EXPLICIT_BE) or len(head) > _MAX_BYTES or head.startswith(_META_GROUP, offset):
        return None
    alike = _alike.find(head, offset, syntax)
    if alike is not None:
        facts, sop_class_uid, (start, end) = alike
        sop_uid = _uid(head[offset + start : offset + end])
        return None if sop_uid is None else Identified(facts, sop_class_uid, sop_uid)
    try:
        return _quickly(head, offset, syntax, size)
    except (NeedMore, HeimdallrError, struct.error):
        return None


def _quickly(head: bytes, at: int, syntax: str, size: int | None) -> Identified | None:
    encoding = encoding_of(syntax, head, at)
    free: list[Span] = []
    located = _locate(Walk(head), at, encoding, size, free)
    if located is None:
        return None
    uids, shared, end = located
    class_at, instance_at = uids.get(_SOP_CLASS, _NOWHERE), uids.get(_SOP_INSTANCE, _NOWHERE)
    sop_class_uid, sop_uid = _uid(head[slice(*class_at)]), _uid(head[slice(*instance_at)])
    if sop_class_uid is None or sop_uid is None:
        # The file meta information may have them.
        return None
    facts = _decoded(shared, encoding)
    if end:
        own = instance_at[0] - at, instance_at[1] - at
        _alike.keep(head, at, syntax, end, [*free, instance_at], (facts, sop_class_uid, own))
    return Identified(facts, sop_class_uid, sop_uid)


def _uid(raw: bytes) -> Uid | None:
    return Uid.parse_or_none(raw[:128].decode("ascii", "replace")) if raw else None


def _locate(
    walk: Walk, at: int, encoding: Encoding, size: int | None, free: list[Span]
) -> tuple[dict[int, Span], tuple[tuple[int, bytes, bytes], ...], int] | None:
    """Where the two SOP UIDs are, and tag, VR and value of what the series shares; None where the walk is not plain.

    In the order of the object, which may repeat a tag: the last value counts, as in the whole header. Third, the end of
    what was looked at up to pixels, 0 where there are none; into `free` go the values before it that do not matter.
    """
    head = walk.buffer
    end = len(head)
    explicit = encoding.explicit
    uids: dict[int, Span] = {}
    shared: list[tuple[int, bytes, bytes]] = []
    sought = _SOUGHT
    while at < end:
        start = at + 8
        if explicit:
            group, element, vr, length = _EXPLICIT(head, at)
            if vr not in _SHORT_VRS:
                if vr not in _LONG_VRS:
                    return None
                length = _LENGTH(head, start)[0]
                start += 4
        else:
            group, element, length = _IMPLICIT(head, at)
            vr = b""
        tag = group << 16 | element
        if tag >= _PIXELS:
            return uids, tuple(shared), start
        if length == UNDEFINED:
            if tag in sought or 0x00090010 <= tag <= 0x000900FF:
                # No value, also where the same tag has had one before.
                return None
            inner = IMPLICIT if vr == b"UN" else encoding
            at = walk.end_of_undefined(Element(tag, vr, at, start, start, True, inner))
            continue
        at = start + length
        if at > end:
            return None
        if tag in sought:
            if tag in _SOP_UIDS:
                uids[tag] = start, at
            elif tag == _PER_FRAME:
                # The whole header opens these items, and may refuse them.
                return None
            else:
                shared.append((tag, vr, head[start:at]))
        elif group == 0x0009 and 0x0010 <= element <= 0x00FF:
            shared.append((tag, vr, head[start:at]))
        elif length:
            free.append((start, at))
    # No pixels: the object ends here, or it may go on behind its first bytes.
    return (uids, tuple(shared), 0) if end == size else None


@lru_cache(maxsize=256)
def _decoded(shared: tuple[tuple[int, bytes, bytes], ...], encoding: Encoding) -> IdentityFacts:
    """The facts of a series; its next image brings the same bytes."""
    at = 0
    elements: dict[int, Element] = {}
    for tag, vr, value in shared:
        elements[tag] = Element(tag, vr, at, at, at + len(value), False, encoding)
        at += len(value)
    values = Values(Walk(b"".join(value for _, _, value in shared)), elements)
    manufacturer = values.text(0x00080070, 64)
    return IdentityFacts(
        study_uid=values.uid(0x0020000D),
        series_uid=values.uid(0x0020000E),
        modality=values.text(0x00080060, 16).upper(),
        series_number=values.integer(0x00200011, "series_number"),
        series_description=values.text(0x0008103E, 64),
        body_part=values.text(0x00180015, 16),
        kernel=values.text(0x00181210, 64),
        rows=values.unsigned(0x00280010, "rows"),
        patient_id=values.text(0x00100020, 64),
        patient_name=values.text(0x00100010, 194),
        patient_birth_date=values.date(0x00100030),
        patient_sex=values.text(0x00100040, 16).upper(),
        study_date=values.date(0x00080020),
        study_time=values.text(0x00080030, 16),
        study_description=values.text(0x00081030, 64),
        accession_number=values.text(0x00080050, 16),
        requested_priority=values.text(_PRIORITY, 16).upper(),
        n_related_instances=values.integer(0x00201208, "n_related_instances"),
        synthetic=manufacturer == SYNTHETIC_CREATOR
        or any(values.text(tag, 64) == SYNTHETIC_CREATOR for tag in values.within(range(0x00090010, 0x00090100))),
    )
