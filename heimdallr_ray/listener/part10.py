"""Group 0002 written and read by hand, so that data set bytes are never decoded or re-encoded on their way in.

Source: PS3.10 section 7.1 (file meta information), PS3.5 section 7.1 (element encoding), A.4-A.5 (transfer syntaxes).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import lru_cache

from heimdallr_ray.errors import NotDicom, TooLarge
from heimdallr_ray.ids import Uid

PREAMBLE = b"\0" * 128 + b"DICM"
IMPLICIT_LITTLE = "1.2.840.10008.1.2"
EXPLICIT_LITTLE = "1.2.840.10008.1.2.1"
DEFLATED_LITTLE = "1.2.840.10008.1.2.1.99"
EXPLICIT_BIG = "1.2.840.10008.1.2.2"
DICOMDIR_CLASS = "1.2.840.10008.1.3.10"

IMPLEMENTATION_CLASS_UID = str(Uid.derived("implementation", "heimdallr_ray"))
IMPLEMENTATION_VERSION = "HEIMDALLR_RAY_1"

MAX_META_BYTES = 64 * 1024
"""Group 0002 of real files is under 1 KiB; more is a hostile or damaged file."""
HEAD_BYTES = MAX_META_BYTES + 1024
"""Bytes of a file's beginning that `identify` wants to see."""

# PS3.5 table 7.1-1: VRs whose explicit encoding has two reserved bytes and a 32-bit length.
_LONG_VRS = frozenset({b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"})
_SHORT_VRS = frozenset(
    {
        *(b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FL", b"FD", b"IS", b"LO", b"LT", b"PN"),
        *(b"SH", b"SL", b"SS", b"ST", b"TM", b"UI", b"UL", b"US"),
    }
)


@dataclass(frozen=True)
class FileMeta:
    """Group 0002 of a Part 10 file, as text bounded by its own length.

    `dataset_offset` is where the data set begins, in bytes from the start of the file.
    """

    dataset_offset: int
    transfer_syntax_uid: str
    sop_class_uid: str = ""
    sop_instance_uid: str = ""
    implementation_class_uid: str = ""
    implementation_version: str = ""
    source_ae: str = ""


def _element(element: int, vr: bytes, value: bytes) -> bytes:
    if len(value) % 2:
        value += b" " if vr in (b"SH", b"AE") else b"\0"
    head = struct.pack("<HH2s", 0x0002, element, vr)
    length = struct.pack("<HI", 0, len(value)) if vr in _LONG_VRS else struct.pack("<H", len(value))
    return head + length + value


def encode_meta(meta: FileMeta) -> bytes:
    """Preamble, prefix and group 0002 of a file; the data set follows directly.

    `dataset_offset` of `meta` is ignored. The preamble is zero, so no file of ours is ever executable (CVE-2019-11687).
    """
    uid = meta.sop_instance_uid.encode("ascii")
    before, behind = meta_around(
        len(uid),
        meta.sop_class_uid,
        meta.transfer_syntax_uid,
        meta.implementation_class_uid,
        meta.implementation_version,
        meta.source_ae,
    )
    return before + uid + behind


@lru_cache(maxsize=256)
def meta_around(
    uid_length: int,
    sop_class_uid: str,
    transfer_syntax_uid: str,
    implementation_class_uid: str = IMPLEMENTATION_CLASS_UID,
    implementation_version: str = IMPLEMENTATION_VERSION,
    source_ae: str = "",
) -> tuple[bytes, bytes]:
    """What `encode_meta` gives before and behind a SOP Instance UID of so many characters; a series has it in common.

    `uid_length`: without padding. The other arguments are as the fields of `FileMeta`.
    """
    elements = [
        _element(0x0001, b"OB", b"\0\1"),
        _element(0x0002, b"UI", sop_class_uid.encode("ascii")),
        _element(0x0003, b"UI", bytes(uid_length)),
        _element(0x0010, b"UI", transfer_syntax_uid.encode("ascii")),
        _element(0x0012, b"UI", implementation_class_uid.encode("ascii")),
        _element(0x0013, b"SH", implementation_version.encode("ascii")),
    ]
    if source_ae:
        # Source Application Entity Title (PS3.10 table 7.1-1): the AE that sent the object.
        elements.append(_element(0x0016, b"AE", source_ae.encode("ascii", "replace")))
    body = b"".join(elements)
    whole = PREAMBLE + _element(0x0000, b"UL", struct.pack("<I", len(body))) + body
    padding = uid_length % 2
    uid_at = len(whole) - len(b"".join(elements[3:])) - padding - uid_length
    return whole[:uid_at], whole[uid_at + uid_length :]


def _text(value: bytes) -> str:
    return value[:1024].decode("ascii", "replace").rstrip("\0 ")


def parse_meta(head: bytes) -> FileMeta:
    """Group 0002 at the start of `head`, with or without preamble and prefix.

    Args:
        head: the file's first bytes, at least up to the end of group 0002.

    Raises:
        NotDicom: there is no group 0002, or one of its elements cannot be read.
        TooLarge: group 0002 is longer than MAX_META_BYTES.
    """
    start = 132 if head[128:132] == b"DICM" else 0
    if head[start : start + 2] != b"\x02\x00":
        raise NotDicom("no file meta information")
    values: dict[int, bytes] = {}
    position, declared_end = start, 0
    while head[position : position + 2] == b"\x02\x00":
        if declared_end and position >= declared_end and _text(values.get(0x0010, b"")) == DEFLATED_LITTLE:
            break
        if position + 12 > len(head):
            raise NotDicom("file meta information is cut off")
        _, element, vr = struct.unpack_from("<HH2s", head, position)
        if vr in _LONG_VRS:
            (length,) = struct.unpack_from("<I", head, position + 8)
            position += 12
        elif vr in _SHORT_VRS:
            (length,) = struct.unpack_from("<H", head, position + 6)
            position += 8
        else:
            raise NotDicom("file meta information is not explicit VR (PS3.10 7.1)")
        if position + length - start > MAX_META_BYTES:
            raise TooLarge("file meta information is too long")
        if position + length > len(head):
            raise NotDicom("file meta information is cut off")
        values[element] = bytes(head[position : position + length])
        position += length
        if element == 0x0000 and length == 4:
            (group_length,) = struct.unpack("<I", values[0x0000])
            # A deflated data set cannot be told from group 0002 by its first tag, so the length decides there;
            # elsewhere the tags do, because writers get the length wrong.
            declared_end = position + group_length
    syntax = _text(values.get(0x0010, b""))
    if declared_end and syntax == DEFLATED_LITTLE and position != declared_end:
        raise NotDicom("file meta information has a wrong length")
    return FileMeta(
        dataset_offset=position,
        transfer_syntax_uid=syntax,
        sop_class_uid=_text(values.get(0x0002, b"")),
        sop_instance_uid=_text(values.get(0x0003, b"")),
        implementation_class_uid=_text(values.get(0x0012, b"")),
        implementation_version=_text(values.get(0x0013, b"")),
        source_ae=_text(values.get(0x0016, b"")),
    )


def guess_transfer_syntax(dataset_head: bytes) -> str | None:
    """The uncompressed transfer syntax of a bare data set, or None where the bytes do not look like one.

    A data set without file meta begins in group 0008 with an even element; the first two elements must be well formed.
    """
    for syntax, order in ((EXPLICIT_LITTLE, "<"), (EXPLICIT_BIG, ">"), (IMPLICIT_LITTLE, "<")):
        if _looks_like(dataset_head, order, explicit=syntax != IMPLICIT_LITTLE):
            return syntax
    return None


def _looks_like(head: bytes, order: str, *, explicit: bool) -> bool:
    position, previous = 0, -1
    for _ in range(2):
        if position + 12 > len(head):
            return False
        group, element = struct.unpack_from(f"{order}HH", head, position)
        if group != 0x0008 or element <= previous or element > 0x1200:
            return False
        previous = element
        if explicit:
            vr = bytes(head[position + 4 : position + 6])
            if vr in _LONG_VRS:
                (length,) = struct.unpack_from(f"{order}I", head, position + 8)
                position += 12
            elif vr in _SHORT_VRS:
                (length,) = struct.unpack_from(f"{order}H", head, position + 6)
                position += 8
            else:
                return False
        else:
            (length,) = struct.unpack_from(f"{order}I", head, position + 4)
            position += 8
        if length == 0xFFFFFFFF:
            return True
        if length % 2 or length > 65534:
            return False
        position += length
    return True


def has_prefix(head: bytes) -> bool:
    """True where the file says that it is DICOM (PS3.10 7.1), readable or not."""
    return head[128:132] == b"DICM"


def identify(head: bytes) -> FileMeta:
    """What the file that begins with `head` is: a Part 10 file, one without preamble, or a bare data set.

    Args:
        head: the first HEAD_BYTES of the file, or the whole file where it is shorter.

    Raises:
        NotDicom: none of the three.
        TooLarge: group 0002 is longer than MAX_META_BYTES.
    """
    if head[128:132] == b"DICM" or head[:2] == b"\x02\x00":
        meta = parse_meta(head)
        if meta.transfer_syntax_uid:
            return meta
        guessed = guess_transfer_syntax(head[meta.dataset_offset :])
        if guessed is None:
            raise NotDicom("no transfer syntax and no recognisable data set")
        return FileMeta(
            dataset_offset=meta.dataset_offset,
            transfer_syntax_uid=guessed,
            sop_class_uid=meta.sop_class_uid,
            sop_instance_uid=meta.sop_instance_uid,
        )
    guessed = guess_transfer_syntax(head)
    if guessed is None:
        raise NotDicom("neither a Part 10 file nor a data set")
    return FileMeta(dataset_offset=0, transfer_syntax_uid=guessed)
