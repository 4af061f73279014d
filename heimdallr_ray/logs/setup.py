"""The logging of one process: called once where the process begins, never by what logs."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Final

from heimdallr_ray import __version__
from heimdallr_ray.config import Settings
from heimdallr_ray.errors import NotReady
from heimdallr_ray.folders import make_private
from heimdallr_ray.logs.file import SharedFile
from heimdallr_ray.logs.line import OURS, fields_of, is_ours, line_of

SUFFIX: Final = ".log"
_RAY: Final = "ray"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class LogPlace:
    """Where a process logs; made of JSON's values, so that a process can tell it to its children."""

    folder: str
    name: str
    """Of the file, without its suffix; several processes may share it."""
    process: str
    """The role of this process in its lines."""
    level: str
    max_bytes: int
    files: int

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder) / f"{self.name}{SUFFIX}"

    def of(self, process: str) -> LogPlace:
        """The same file for a child in the role `process`."""
        return replace(self, process=process)


class LogFileHandler(logging.Handler):
    """Writes records into the file. What cannot be written is counted and told later; nobody who logs hears of it."""

    def __init__(self, where: LogPlace) -> None:
        super().__init__()
        self._process = where.process
        self._file = SharedFile(where.path, max_bytes=where.max_bytes, files=where.files)
        self._lost = 0
        self._why = ""

    def filter(self, record: logging.LogRecord) -> bool:
        """True for what we say, and for warnings of others: some libraries set a level of their own."""
        return (is_ours(record.name) or record.levelno >= logging.WARNING) and super().filter(record) is not False

    def emit(self, record: logging.LogRecord) -> None:
        """The record is in the file, or counted. Never raises: a full disk stops no reception by this door."""
        try:
            if self._lost:
                self._file.append(line_of(self._confession(), self._process))
                self._lost = 0
            self._file.append(line_of(record, self._process))
        except Exception as error:
            self._lost += 1
            why = errno.errorcode.get(error.errno or 0, "") if isinstance(error, OSError) else type(error).__name__
            if why != self._why:
                self._why = why
                _tell_stderr(f"the log {self._file.path} cannot be written: {why}\n")
        else:
            self._why = ""

    def _confession(self) -> logging.LogRecord:
        record = logging.LogRecord(__name__, logging.ERROR, __file__, 0, "log.lines_lost", None, None)
        record.__dict__.update(count=self._lost, reason=self._why)
        return record

    def close(self) -> None:
        """The file is closed."""
        with self.lock or contextlib.nullcontext():
            self._file.close()
        super().close()


@dataclass
class _Configured:
    """What this process has changed, to be undone."""

    where: LogPlace | None = None
    undo: Callable[[], None] = lambda: None


_here = _Configured()


def place() -> LogPlace | None:
    """Where this process logs; None where nobody has said so."""
    return _here.where


def require_writable(settings: Settings) -> None:
    """The folder of the log exists and takes files.

    Raises:
        NotReady: it does not; says why.
    """
    probe = settings.log_dir / f".probe-{os.getpid()}"
    try:
        make_private(settings.log_dir)
        probe.touch(mode=0o600)
        probe.unlink()
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise NotReady(f"the log cannot be written to {settings.log_dir}: {reason}") from error


def configure(settings: Settings, name: str, *, console: bool = False) -> None:
    """From here on this process logs into `log_dir`/`name`.log.

    A folder that cannot be written stops nobody here, for a listener must come back on a full disk too: the start asks
    `require_writable`.

    Args:
        settings: level, folder, bounds.
        name: the part of the product that this process is.
        console: our own warnings are also said on stderr.
    """
    where = LogPlace(
        str(settings.log_dir), name, name, settings.log_level, settings.log_file_mib << 20, settings.log_files
    )
    configure_at(where, console=console)


def configure_at(where: LogPlace, *, console: bool = False) -> None:
    """As `configure`, for a process that was told the place; again: the earlier place is left."""
    close()
    with contextlib.suppress(OSError):
        make_private(Path(where.folder))
    handler = LogFileHandler(where)
    root, ours, of_ray = logging.getLogger(), logging.getLogger(OURS), logging.getLogger(_RAY)
    level, others = logging.getLevelNamesMapping()[where.level], root.level
    ours_before = ours.level
    # Ray's loggers do not pass on to the root. Serve's have files of their own beside ours.
    aside = _WhereNotPassedOn(where)
    for owner, one in ((root, handler), (of_ray, aside)):
        owner.addHandler(one)
    spoken: logging.Handler | None = None
    if console:
        spoken = logging.StreamHandler()
        spoken.setLevel(logging.WARNING)
        spoken.setFormatter(_Spoken())
        # Python says itself on stderr why a thread or the process ended.
        spoken.addFilter(lambda record: record.name != __name__)
        ours.addHandler(spoken)
    ours.setLevel(level)
    root.setLevel(max(logging.WARNING, level))
    thread_hook, process_hook = threading.excepthook, sys.excepthook
    threading.excepthook = _thread_ended(thread_hook)
    sys.excepthook = _process_ends(process_hook)

    def undo() -> None:
        threading.excepthook, sys.excepthook = thread_hook, process_hook
        root.setLevel(others)
        ours.setLevel(ours_before)
        root.removeHandler(handler)
        of_ray.removeHandler(aside)
        if spoken is not None:
            ours.removeHandler(spoken)
        handler.close()
        aside.close()

    _here.where, _here.undo = where, undo
    logger.info("process.started", extra={"version": __version__})


def close() -> None:
    """This process logs as Python does by itself; doing it again changes nothing."""
    undo, _here.where, _here.undo = _here.undo, None, lambda: None
    undo()


class _Spoken(logging.Formatter):
    """A message for whoever reads the console or the journal; frames are in the file."""

    def format(self, record: logging.LogRecord) -> str:
        """The event with its fields, and the type of the error."""
        error = record.exc_info[1] if record.exc_info else None
        told = [record.getMessage(), *(f"{name}={value}" for name, value in fields_of(record).items())]
        return " ".join(told) + (f": {type(error).__name__}" if error is not None else "")


class _WhereNotPassedOn(LogFileHandler):
    """For a logger that may or may not pass on to the root, which has the file already."""

    def filter(self, record: logging.LogRecord) -> bool:
        """True for a warning that the root does not see."""
        return super().filter(record) and not logging.getLogger(_RAY).propagate


def _tell_stderr(words: str) -> None:
    with contextlib.suppress(OSError):
        os.write(2, words.encode("utf-8", "replace"))


def _thread_ended(before: Callable[[threading.ExceptHookArgs], object]) -> Callable[[threading.ExceptHookArgs], object]:
    def told(ended: threading.ExceptHookArgs) -> None:
        if ended.exc_value is not None and not isinstance(ended.exc_value, SystemExit):
            name = ended.thread.name if ended.thread is not None else None
            logger.critical("thread.failed", exc_info=ended.exc_value, extra={"thread_name": name})
        before(ended)

    return told


def _process_ends(
    before: Callable[[type[BaseException], BaseException, TracebackType | None], object],
) -> Callable[[type[BaseException], BaseException, TracebackType | None], None]:
    def told(kind: type[BaseException], error: BaseException, frames: TracebackType | None) -> None:
        if not isinstance(error, KeyboardInterrupt | SystemExit):
            logger.critical("process.failed", exc_info=(kind, error, frames))
        before(kind, error, frames)

    return told
