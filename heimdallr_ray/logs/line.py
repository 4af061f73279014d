"""One line of the log: a JSON object in ASCII that quotes no patient and cannot be broken by a stranger's text."""

from __future__ import annotations

import errno
import json
import logging
import math
import traceback
from collections.abc import Mapping
from datetime import UTC, date, datetime
from enum import Enum
from pathlib import Path, PurePath
from types import TracebackType
from typing import Any, Final, cast

from heimdallr_ray.errors import HeimdallrError

OURS: Final = "heimdallr_ray"
QUOTED: Final = ("ray", "uvicorn.error", "alembic", "sqlalchemy.pool")
"""Libraries whose warnings are quoted, the first line of each: they never see a data set, a query string or a token.

What another library says is named by its place in that library and not quoted: pydicom, for one, writes the values of
a data set into its warnings.
"""
MAX_LINE_BYTES: Final = 32 * 1024
MAX_TEXT: Final = 500
MAX_ITEMS: Final = 50
MAX_DEPTH: Final = 3
MAX_FRAMES: Final = 20
MAX_CAUSES: Final = 4
_CUT: Final = "..."
_STANDARD: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def is_ours(logger: str) -> bool:
    """True for the loggers of this package."""
    return logger == OURS or logger.startswith(f"{OURS}.")


def line_of(record: logging.LogRecord, process: str) -> bytes:
    """The line of one record, with its end of line.

    Args:
        record: what was logged.
        process: the role of this process, as `listener`.
    """
    ours = is_ours(record.name)
    fields = fields_of(record) if ours else _strangers(record)
    values: dict[str, Any] = {
        "time": time_words(record.created),
        "level": record.levelname,
        "event": _text(record.getMessage()) if ours else "library.said",
        "logger": record.name,
        "process": process,
        "pid": record.process,
    }
    if fields:
        values["fields"] = fields
    if record.exc_info and record.exc_info[1] is not None:
        values["error"] = error_words(record.exc_info[1])
    line = _encoded(values)
    if len(line) > MAX_LINE_BYTES:
        line = _encoded({**{name: values[name] for name in list(values)[:6]}, "fields": {"too_long": len(line)}})
    return line


def _encoded(values: Mapping[str, Any]) -> bytes:
    # ASCII: neither a line separator of Unicode nor a terminal's escape gets through.
    return json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":")).encode("ascii") + b"\n"


def time_words(created_s: float) -> str:
    """UTC with milliseconds, as 2026-11-23T11:01:31.123Z; `created_s` since 1970."""
    return datetime.fromtimestamp(created_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What the event has to say, as JSON has it."""
    # Ray adds a time of its own to every record, under a name with an underscore.
    return {name: _plain(value) for name, value in vars(record).items() if name not in _STANDARD and name[0] != "_"}


def _strangers(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = {"where": f"{_short(record.pathname)}:{record.lineno} {record.funcName}"}
    if any(record.name == name or record.name.startswith(f"{name}.") for name in QUOTED):
        lines = record.getMessage().strip().splitlines()
        fields["text"] = _text(lines[0]) if lines else ""
    return fields


def _text(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[: MAX_TEXT - len(_CUT)] + _CUT


def _plain(value: object, depth: int = 0) -> Any:  # noqa: ANN401
    """The value as JSON has it; of an object that JSON does not have, its type, for its words may be anybody's."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, PurePath | date):
        return _text(str(value))
    if depth < MAX_DEPTH and isinstance(value, Mapping):
        items = list(cast("Mapping[object, object]", value).items())[:MAX_ITEMS]
        return {_text(str(_plain(key, MAX_DEPTH))): _plain(item, depth + 1) for key, item in items}
    if depth < MAX_DEPTH and isinstance(value, list | tuple | set | frozenset):
        return [_plain(item, depth + 1) for item in list(cast("list[object]", value))[:MAX_ITEMS]]
    return f"<{type(value).__name__}>"


def error_words(error: BaseException, causes: int = MAX_CAUSES) -> dict[str, Any]:
    """Type and frames of an error and of what caused it.

    Words only where they are ours (code and detail) or the system's (the name of an errno): the message of any other
    error may hold what it could not read, and a source line tells nothing that file and number do not.
    """
    kind = type(error)
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    words: dict[str, Any] = {"type": _text(f"{module}{kind.__qualname__}")}
    if isinstance(error, HeimdallrError):
        words |= {"code": error.code, "detail": _text(error.detail)}
    elif isinstance(error, OSError) and error.errno is not None:
        words["errno"] = errno.errorcode.get(error.errno, str(error.errno))
    words["frames"] = _frames(error.__traceback__)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if isinstance(error, BaseExceptionGroup) and cause is None:
        cause = cast("BaseExceptionGroup[BaseException]", error).exceptions[0]
    if cause is not None and causes > 1:
        words["cause"] = error_words(cause, causes - 1)
    return words


def _frames(found: TracebackType | None) -> list[str]:
    """`file:line function`, the innermost last, at most MAX_FRAMES of them: the innermost ones."""
    frames = traceback.StackSummary.extract(traceback.walk_tb(found), limit=-MAX_FRAMES, lookup_lines=False)
    return [f"{_short(frame.filename)}:{frame.lineno} {frame.name}"[:MAX_TEXT] for frame in frames]


def _short(path: str) -> str:
    """The end of a path: where the installation lies is the same in every line."""
    return "/".join(Path(path).parts[-3:])
