"""What a ZIP may be before anything of it is used: its directory is judged whole, and what it inflates to is counted.

Names are only looked at to refuse archives that mean harm; whether a name becomes a file is the caller's matter.
"""

from __future__ import annotations

import stat
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO

from heimdallr_ray.errors import BadArchive, TooLarge

MAX_RATIO = 200
"""Unpacked to packed. Real CT reaches about 5; a bomb of zeros 1032, the most that DEFLATE can (zlib notes)."""
RATIO_FREE_BYTES = 64 << 20
"""Up to this size the ratio does not matter: small phantoms of constant value are legitimate."""
MAX_DIRECTORY_BYTES_PER_ENTRY = 1024
"""Of the central directory: 46 bytes, name, extra field and comment."""
MAX_NAME_CHARS = 1024
_CHUNK_BYTES = 1 << 20
NO_ZIP = "not a ZIP archive"
LOCAL_HEADER = b"PK\x03\x04"
"""What a ZIP with an entry begins with."""
UNREADABLE_WORDS = (
    "the ZIP is damaged, cut off or packed in a way that is not read here: put the DICOM files into a ZIP anew"
)
"""To a person with a ZIP of images."""
_END_RECORD = b"PK\x05\x06"
_END_RECORD_BYTES = 22
_MAX_COMMENT_BYTES = 65_535
_ENCRYPTED = 0x1
_METHODS = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})


@dataclass(frozen=True)
class ArchiveLimits:
    """How much one archive may hold."""

    max_entries: int
    max_unpacked_bytes: int
    max_ratio: int = MAX_RATIO


def check_end_record(path: Path, limits: ArchiveLimits) -> None:
    """Nothing happens while the directory that the archive declares is of a size that may be read at all.

    Raises:
        BadArchive: not a ZIP, or one whose end is missing.
        TooLarge: more entries, or a larger directory, than the limits allow.
        OSError: the file cannot be read.
    """
    with path.open("rb") as stream:
        head = stream.read(len(LOCAL_HEADER))
        size = stream.seek(0, 2)
        stream.seek(max(0, size - _END_RECORD_BYTES - _MAX_COMMENT_BYTES))
        tail = stream.read(_END_RECORD_BYTES + _MAX_COMMENT_BYTES)
    position = tail.rfind(_END_RECORD)
    if position < 0 or position + _END_RECORD_BYTES > len(tail):
        raise BadArchive("the ZIP archive is cut off" if head == LOCAL_HEADER else NO_ZIP)
    entries, directory_bytes = struct.unpack_from("<HI", tail, position + 10)
    # 0xFFFF and 0xFFFFFFFF say that a ZIP64 record holds the number; the directory's real bytes are bounded below.
    if entries != 0xFFFF and entries > limits.max_entries:
        raise TooLarge(f"the archive has more than {limits.max_entries} entries")
    locator = tail[max(0, position - 20) : position]
    if directory_bytes == 0xFFFFFFFF or locator.startswith(b"PK\x06\x07"):
        directory_bytes = _zip64_directory_bytes(path, locator)
    if directory_bytes > limits.max_entries * MAX_DIRECTORY_BYTES_PER_ENTRY:
        raise TooLarge("the archive's directory is too large")


def _zip64_directory_bytes(path: Path, locator: bytes) -> int:
    if len(locator) != 20 or not locator.startswith(b"PK\x06\x07"):
        raise BadArchive("the ZIP64 locator is missing")
    (offset,) = struct.unpack_from("<Q", locator, 8)
    with path.open("rb") as stream:
        if offset + 56 > stream.seek(0, 2):
            raise BadArchive("the ZIP64 record lies outside the archive")
        stream.seek(offset)
        record = stream.read(56)
    if not record.startswith(b"PK\x06\x06"):
        raise BadArchive("the ZIP64 record is missing")
    return int(struct.unpack_from("<Q", record, 40)[0])


def check_directory(
    members: list[zipfile.ZipInfo], directory_offset: int, archive_bytes: int, limits: ArchiveLimits
) -> list[tuple[int, zipfile.ZipInfo]]:
    """The files among `members` with their position, once the whole directory has been found harmless.

    Args:
        members: the central directory in its order.
        directory_offset: where the central directory begins in the file.
        archive_bytes: size of the archive.
        limits: how much it may hold.

    Raises:
        BadArchive, TooLarge: names, kinds, methods or places that are not allowed; more than the limits allow.
    """
    if len(members) > limits.max_entries:
        raise TooLarge(f"the archive has more than {limits.max_entries} entries")
    seen: set[str] = set()
    unpacked = 0
    for member in members:
        _check_member(member)
        if member.filename in seen:
            raise BadArchive("two entries have the same name")
        seen.add(member.filename)
        unpacked += member.file_size
    if unpacked > limits.max_unpacked_bytes:
        raise TooLarge(f"the archive unpacks to more than {limits.max_unpacked_bytes >> 20} MiB")
    if unpacked > RATIO_FREE_BYTES and unpacked > limits.max_ratio * archive_bytes:
        raise TooLarge("the archive unpacks to an implausible multiple of its size")
    # A local header has at least 30 bytes and the name; entries that share bytes multiply what they unpack to.
    spans = sorted((member.header_offset, member.header_offset + 30 + member.compress_size) for member in members)
    for (_, end), (start, _) in pairwise([*spans, (directory_offset, directory_offset)]):
        if end > start:
            raise BadArchive("entries overlap")
    return [(index, member) for index, member in enumerate(members) if not member.is_dir()]


def _check_member(member: zipfile.ZipInfo) -> None:
    # ZipInfo cuts the name at a NUL; the original tells.
    name = member.orig_filename
    if len(name) > MAX_NAME_CHARS or "\0" in name:
        raise BadArchive("an entry's name is not allowed")
    parts = name.replace("\\", "/").split("/")
    if ".." in parts or parts[0] == "" or parts[0][1:2] == ":":
        raise BadArchive("an entry's name leaves the archive")
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise BadArchive("an entry is a link or a device")
    if member.flag_bits & _ENCRYPTED:
        raise BadArchive("an entry is encrypted")
    if member.compress_type not in _METHODS:
        raise BadArchive("an entry is compressed by a method that is not accepted")
    if member.header_offset < 0:
        raise BadArchive("an entry lies outside the archive")


class Budget:
    """Bytes that may still be inflated. Counts what really comes out, whatever the directory declared."""

    def __init__(self, limits: ArchiveLimits, archive_bytes: int) -> None:
        """For an archive of `archive_bytes`."""
        self.left = min(limits.max_unpacked_bytes, max(RATIO_FREE_BYTES, limits.max_ratio * archive_bytes))

    def read(self, stream: IO[bytes], size: int) -> bytes:
        """At most `size` bytes of `stream`.

        Raises:
            TooLarge: more came out of the archive than its limits allow.
        """
        chunk = stream.read(size)
        self.left -= len(chunk)
        if self.left < 0:
            raise TooLarge("the archive unpacks to more than allowed")
        return chunk

    def chunks(self, stream: IO[bytes]) -> Iterator[bytes]:
        """What is left of `stream`, in pieces.

        Raises:
            As `read`.
        """
        while chunk := self.read(stream, _CHUNK_BYTES):
            yield chunk
