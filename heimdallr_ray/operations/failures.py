"""Why the last stack of a data folder ended by itself: told by `status` and `doctor` until one is ready again."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from heimdallr_ray.ids import new_id

_NAME = "failure.json"
MAX_BYTES = 64 << 10
_MAX_CHARS = 2000


@dataclass(frozen=True)
class Failure:
    """One end that nobody asked for."""

    at: str
    """UTC, ISO 8601."""
    code: str
    detail: str

    @property
    def words(self) -> str:
        """As one line."""
        return f"{self.at} {self.code}: {self.detail}"


def note(run_dir: Path, at: datetime, code: str, detail: str) -> None:
    """Remember it. A folder that takes no file is left alone: the log and the console have said it."""
    failure = Failure(at.isoformat(timespec="seconds"), code, detail[:_MAX_CHARS])
    temporary = run_dir / f"{new_id()}.tmp"
    with suppress(OSError):
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary.write_text(json.dumps(asdict(failure)), encoding="ascii")
        temporary.replace(run_dir / _NAME)


def forget(run_dir: Path) -> None:
    """A stack is ready: what ended the one before does not count any more."""
    with suppress(OSError):
        (run_dir / _NAME).unlink(missing_ok=True)


def read(run_dir: Path) -> Failure | None:
    """What was noted last; None where nothing was, or it cannot be read."""
    try:
        with (run_dir / _NAME).open("rb") as file:
            fields = cast("dict[str, Any]", json.loads(file.read(MAX_BYTES)))
        return Failure(str(fields["at"]), str(fields["code"]), str(fields["detail"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
