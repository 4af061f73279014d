"""What became of each file of a C-STORE send, and what a status means.

Source: PS3.4 table B.2-1, PS3.7 annex C.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from heimdallr_ray.clients.files import SkippedFile

_REASONS = (
    (0xFFFF, 0x0122, "the peer does not take this SOP class"),
    (0xFFFF, 0x0124, "the peer does not allow it"),
    (0xFF00, 0xA700, "the peer has no resources"),
    (0xFF00, 0xA900, "the peer says that the data set does not match its SOP class"),
    (0xF000, 0xC000, "the peer cannot understand the object"),
)
"""Mask, status under it, words."""


def reason_of(status: int) -> str:
    """A failure status in words; empty for Success and warnings. Source: PS3.4 table B.2-1, PS3.7 annex C."""
    if status == 0x0000 or status & 0xF000 == 0xB000:
        return ""
    words = next((text for mask, value, text in _REASONS if status & mask == value), "the peer refuses it")
    return f"{words} (status 0x{status:04X})"


@dataclass(frozen=True)
class FileStatus:
    """The answer to one file: DIMSE status, or None where none came."""

    path: str
    sop_uid: str
    status: int | None
    reason: str = ""
    sop_class_uid: str = ""

    @property
    def acknowledged(self) -> bool:
        """True for Success and the Warning range (PS3.4 table B.2-1): the peer has the object."""
        return self.status is not None and (self.status == 0x0000 or self.status & 0xF000 == 0xB000)


@dataclass(frozen=True)
class SendReport:
    """What became of every file."""

    files: tuple[FileStatus, ...]
    skipped: int
    """Files that are no DICOM objects, and DICOMDIRs."""
    associations: int
    bytes_sent: int
    seconds: float
    skipped_files: tuple[SkippedFile, ...] = ()
    """The first of them, each with its reason."""
    study_uids: tuple[str, ...] = ()
    """StudyInstanceUIDs of which the peer has at least one object."""
    without_study_uid: int = 0
    """Objects that the peer has and that name no study; it gives them one."""

    @property
    def sent(self) -> int:
        """Files that the peer has."""
        return sum(item.acknowledged for item in self.files)

    @property
    def failed(self) -> int:
        """Files that the peer refused or never answered."""
        return len(self.files) - self.sent

    @property
    def acknowledged(self) -> tuple[str, ...]:
        """SOP Instance UIDs that the peer has."""
        return tuple(item.sop_uid for item in self.files if item.acknowledged)

    def as_json(self) -> dict[str, Any]:
        """The report for a program; of the files only those that failed."""
        return {
            "sent": self.sent,
            "failed": self.failed,
            "skipped": self.skipped,
            "associations": self.associations,
            "bytes": self.bytes_sent,
            "seconds": round(self.seconds, 3),
            "study_uids": list(self.study_uids),
            "without_study_uid": self.without_study_uid,
            "skipped_files": [asdict(item) for item in self.skipped_files],
            "failures": [asdict(item) for item in self.files if not item.acknowledged],
        }
