"""What has arrived of a download, and the note beside it by which a later run can go on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

_MAX_NOTE_BYTES: Final = 64 << 10


@dataclass
class Part:
    """A file that grows.

    Attributes:
        path: of the file.
        address: that it comes from.
        validator: what the server called these bytes, for If-Range; empty where they cannot be continued.
        size: bytes that have arrived.
        total: bytes of the whole; None where the server does not say.
    """

    path: Path
    address: str
    validator: str = ""
    size: int = 0
    total: int | None = None

    @property
    def note(self) -> Path:
        """The file beside it that says what it is a part of."""
        return self.path.with_name(f"{self.path.name}.json")

    @classmethod
    def found(cls, path: Path, address: str) -> Part:
        """What an earlier run left, where it is of the same address and can be continued; else nothing."""
        part = cls(path, address)
        try:
            with part.note.open("rb") as stream:
                noted = cast("dict[str, Any]", json.loads(stream.read(_MAX_NOTE_BYTES)))
            if noted.get("address") == address and noted.get("validator"):
                part.validator = str(noted["validator"])
                part.total = int(noted["total"]) if noted.get("total") is not None else None
                part.size = path.stat().st_size
        except (OSError, ValueError, RecursionError, AttributeError, TypeError):
            return cls(path, address)
        return part

    def begin(self, validator: str, total: int | None) -> None:
        """Nothing has arrived yet of what the server calls `validator`.

        Raises:
            OSError: the note cannot be written.
        """
        # First of all the old bytes go: a note must never stand beside bytes of something else, whenever we are killed.
        self.path.unlink(missing_ok=True)
        self.validator, self.total, self.size = validator, total, 0
        document = {"address": self.address, "validator": validator, "total": total}
        self.note.write_text(json.dumps(document), encoding="utf-8")

    def forget(self) -> None:
        """The file and its note are gone."""
        self.path.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)
        self.validator, self.total, self.size = "", None, 0
