"""Which files of a folder are DICOM objects that can be sent, and why each other one is left out."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.errors import EmptyInput, Rejected
from heimdallr_ray.ids import Uid
from heimdallr_ray.listener import part10

logger = logging.getLogger(__name__)

MAX_FILES = 1_000_000
MAX_NAMED = 20
"""Skipped files that a report names; the others are counted."""
_NAMED_IN_ERROR = 3
INDEX_REASON = "a DICOMDIR: an index, no image"


@dataclass(frozen=True)
class SkippedFile:
    """One file that was left out, and why."""

    path: str
    """Relative to the folder that was asked for."""
    reason: str


@dataclass(frozen=True)
class Outgoing:
    """One file that will be sent."""

    path: Path
    sop_class_uid: str
    sop_uid: str
    study_uid: str
    """Empty where the object names none; the receiver gives it one."""
    transfer_syntax_uid: str
    dataset_offset: int
    size: int = 0
    """Bytes of the data set."""

    @property
    def context(self) -> tuple[str, str]:
        """What a presentation context has to name: SOP class and transfer syntax."""
        return self.sop_class_uid, self.transfer_syntax_uid


@dataclass(frozen=True)
class Selection:
    """The files that can be sent, in the order of their paths, and those that cannot."""

    outgoing: tuple[Outgoing, ...]
    skipped: int
    named: tuple[SkippedFile, ...]
    """The first MAX_NAMED of the skipped ones."""


def candidates(path: Path) -> list[Path]:
    """Every file at or below `path`, at most MAX_FILES of them, sorted."""
    return [path] if path.is_file() else sorted(islice((p for p in path.rglob("*") if p.is_file()), MAX_FILES))


def select(path: Path) -> Selection:
    """Each file at or below `path` is either to be sent or left out with a reason.

    Raises:
        EmptyInput: none can be sent; names the first that were left out.
    """
    outgoing: list[Outgoing] = []
    named: list[SkippedFile] = []
    skipped = 0
    for candidate in candidates(path):
        try:
            outgoing.append(_describe(candidate))
        except (Rejected, OSError) as error:
            logger.debug("send.skipped", extra={"reason": type(error).__name__})
            skipped += 1
            if len(named) < MAX_NAMED:
                name = candidate.name if candidate == path else str(candidate.relative_to(path))
                named.append(SkippedFile(name, why(error)))
    if not outgoing:
        raise EmptyInput(_nothing(skipped, named))
    return Selection(tuple(outgoing), skipped, tuple(named))


def why(error: Rejected | OSError) -> str:
    """The reason in words."""
    if isinstance(error, OSError):
        return f"cannot be read: {error.strerror or type(error).__name__}"
    return error.detail


def some_named(named: Sequence[SkippedFile], number: int) -> str:
    """The first few of `number` files with their reasons, the others counted."""
    shown = "; ".join(f"{item.path}: {item.reason}" for item in named[:_NAMED_IN_ERROR])
    more = f"; and {number - _NAMED_IN_ERROR} more" if number > _NAMED_IN_ERROR else ""
    return f"{shown}{more}"


def _nothing(skipped: int, named: list[SkippedFile]) -> str:
    if not skipped:
        return "no DICOM object there: the folder holds no file"
    return f"no DICOM object there ({some_named(named, skipped)})"


def _describe(path: Path) -> Outgoing:
    """What a C-STORE of the file names: the class and instance of its data set, else those of its file meta.

    Raises:
        Rejected: not an object that can be sent; NotDicom, TruncatedObject, TooLarge where it is none at all.
        OSError: not readable.
    """
    with path.open("rb") as stream:
        meta = part10.identify(stream.read(part10.HEAD_BYTES))
    if meta.sop_class_uid == part10.DICOMDIR_CLASS:
        raise Rejected(INDEX_REASON)
    header = read_header(path if meta.dataset_offset else part10.encode_meta(meta) + path.read_bytes())
    if header.sop_class_uid is None or header.sop_uid is None or Uid.parse_or_none(meta.transfer_syntax_uid) is None:
        # A C-STORE request names class and instance (PS3.7 table 9.1-1); without them there is nothing to say.
        raise Rejected("names no SOP class, no SOP instance or no transfer syntax, which C-STORE asks for")
    return Outgoing(
        path=path,
        sop_class_uid=str(header.sop_class_uid),
        sop_uid=str(header.sop_uid),
        study_uid=str(header.study_uid or ""),
        transfer_syntax_uid=meta.transfer_syntax_uid,
        dataset_offset=meta.dataset_offset,
        size=path.stat().st_size - meta.dataset_offset,
    )
