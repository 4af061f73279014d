"""What a replica has to say about its models, left in its own folder for `heimdallr status` and `doctor` of this host.

A replica that works answers no questions, and one that sleeps must not be woken by them; a small file can always be
read. It goes with the replica's folder.
"""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Final, cast

from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.segmentation.engine import EngineInfo
from heimdallr_ray.segmentation.totalseg.environment import is_alive

logger = logging.getLogger(__name__)

HOMES: Final = "totalsegmentator"
"""Folder below the run folder with one folder for each replica of this host."""
NAME: Final = "engine.json"
REFUSED: Final = "segmenter_refused.json"
"""In the run folder: why the last replica that was started here did not become ready; gone once one does."""
_MAX_BYTES: Final = 1 << 16
_MAX_REPLICAS: Final = 64
"""More than this do not share one host."""


@dataclass(frozen=True)
class EngineNotes:
    """What one replica told when it was ready.

    Attributes:
        device: torch's name of it.
        mode: `exact` or `turbo`, as the site asked.
        turbo: models that are called in a faster way, each with its steps.
        notes: what a person should know, see `EngineInfo.notes`.
        not_run: tasks that are installed and that this replica does not run, and why.
    """

    device: str
    mode: str
    turbo: tuple[str, ...]
    notes: tuple[str, ...]
    not_run: Mapping[str, str] = field(default_factory=dict[str, str])


def write_notes(home: Path, info: EngineInfo) -> None:
    """The replica's folder tells of its models; a folder that cannot be written costs the note, not the replica."""
    told = {
        "device": info.device,
        "mode": info.mode,
        "turbo": [f"{name}: {', '.join(steps)}" for name, steps in info.turbo.items()],
        "notes": list(info.notes),
        "not_run": {**info.set_aside, **info.over_budget},
    }
    temporary = home / f".{NAME}.tmp"
    try:
        temporary.write_text(json.dumps(told), encoding="utf-8")
        temporary.replace(home / NAME)
    except OSError as error:
        logger.warning("segmenter.note_not_kept", extra={"reason": error.strerror})


@contextmanager
def refusal_told(run_dir: Path) -> Generator[None]:
    """Why the block, a replica's start, ended in an error of ours stays to be read; nothing stays where it did not."""
    file = run_dir / REFUSED
    try:
        yield
    except HeimdallrError as error:
        try:
            temporary = file.with_name(f".{REFUSED}.tmp")
            temporary.write_text(json.dumps({"code": error.code, "detail": error.detail}), encoding="utf-8")
            temporary.replace(file)
        except OSError as failed:
            logger.warning("segmenter.note_not_kept", extra={"reason": failed.strerror})
        raise
    file.unlink(missing_ok=True)


def read_refusal(run_dir: Path) -> str:
    """Why the last replica that was started here under the present settings did not become ready; empty: it did."""
    file, settings = run_dir / REFUSED, run_dir / "settings.json"
    try:
        if settings.exists() and settings.stat().st_mtime_ns > file.stat().st_mtime_ns:
            return ""
        with file.open("rb") as stream:
            told: object = json.loads(stream.read(_MAX_BYTES))
    except (OSError, ValueError, RecursionError):
        return ""
    parts = cast("dict[str, Any]", told) if isinstance(told, dict) else {}
    return f"{parts['code']}: {parts['detail']}" if {"code", "detail"} <= parts.keys() else ""


def not_run(run_dir: Path) -> dict[str, str]:
    """Tasks that are installed and that a replica of this host does not run, and why."""
    return {name: why for one in read_notes(run_dir / HOMES) for name, why in one.not_run.items()}


def read_notes(root: Path) -> tuple[EngineNotes, ...]:
    """The notes of all replicas of this host that live, from the folder that holds theirs."""
    found: list[EngineNotes] = []
    host = socket.gethostname()
    try:
        folders = sorted(islice(root.iterdir(), _MAX_REPLICAS))
    except OSError:
        return ()
    for folder in folders:
        name, _, pid = folder.name.rpartition("-")
        if name == host and pid.isdecimal() and is_alive(int(pid)):
            note = _read(folder / NAME)
            if note is not None:
                found.append(note)
    return tuple(found)


def _read(path: Path) -> EngineNotes | None:
    """The note in a file, or None where there is none yet or it cannot be read."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_MAX_BYTES + 1)
        told: object = json.loads(content) if len(content) <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(told, dict):
        return None
    parts = cast("dict[str, Any]", told)
    not_run = parts.get("not_run")
    return EngineNotes(
        str(parts.get("device")),
        str(parts.get("mode")),
        _words(parts, "turbo"),
        _words(parts, "notes"),
        {str(name): str(why) for name, why in not_run.items()} if isinstance(not_run, dict) else {},  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]
    )


def _words(parts: dict[str, Any], key: str) -> tuple[str, ...]:
    listed = parts.get(key)
    return tuple(str(one) for one in cast("Sequence[object]", listed)) if isinstance(listed, list) else ()
