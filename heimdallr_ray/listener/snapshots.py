"""How the figures of every process reach whoever asks: a small file each in run/figures, and no port.

A process takes the first free place of its kind (`listener-0`, `listener-1`, `http-0`, ...) by locking
`<place>.lock`, and writes `<place>.json` every second by renaming a new file over it. The kernel frees the lock of a
process that dies, so that its figures are no longer told, and its successor takes the same place: a scraper sees one
series of numbers that begins anew, as after every restart.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter, ValidationError

from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import HeimdallrError, NotReady
from heimdallr_ray.folders import make_private
from heimdallr_ray.listener.figures import Figures, IntakeFigures, OpenNow
from heimdallr_ray.listener.spool import storage_error

logger = logging.getLogger(__name__)

FOLDER: Final = "figures"
LISTENER: Final = "listener"
HTTP: Final = "http"
WRITE_EVERY_S: Final = 1.0
CHORES_EVERY_S: Final = 60.0
STALE_S: Final = 30.0
"""A process that lives and has told nothing for so long hangs; its figures are left out."""
MAX_PLACES: Final = 64
MAX_OPEN: Final = 1000
"""Associations that are told one by one."""
MAX_BYTES: Final = 1 << 20
_PLACE = re.compile(r"(listener|http)-([0-9]{1,3})")
_ATTEMPTS: Final = 3
_PAUSE_S: Final = 0.02


@dataclass(frozen=True)
class ProcessState:
    """What a process is, beside its counts."""

    port: int = 0
    healthy: bool = True
    trouble: str = ""
    """What is wrong with it, in words of ours; empty where nothing is."""
    draining: bool = False
    open: tuple[OpenNow, ...] = ()
    waiting: int = 0
    """Acknowledged objects that wait in memory to become rows."""
    committed: int = 0
    """Objects that became rows since the start."""
    duplicates: int = 0
    """Objects that were there before with the same bytes."""
    conflicts: int = 0
    """Objects that came under a known SOP Instance UID with other bytes; both are kept."""
    commit_failures: int = 0
    """Groups of objects that could not become rows at once, and were tried again."""
    notes_dropped: int = 0
    """Of associations and for the audit chain, because the database did not answer for long."""


@dataclass(frozen=True)
class Snapshot:
    """One process at one moment."""

    place: str
    pid: int
    started_at: datetime
    written_at: datetime
    state: ProcessState
    figures: Figures

    @property
    def kind(self) -> str:
        """`listener` or `http`."""
        return self.place.partition("-")[0]


_JSON = TypeAdapter(Snapshot)


class Place:
    """A place of ours in the folder; freed by `leave` or by the end of the process."""

    def __init__(self, folder: Path, name: str, fd: int) -> None:
        self.name = name
        self._folder = folder
        self._fd = fd

    @classmethod
    def take(cls, folder: Path, kind: str) -> Place:
        """The first free one.

        Raises:
            NotReady: all are taken.
            StorageFull, StorageFailed: the folder cannot be written.
        """
        try:
            make_private(folder)
            for number in range(MAX_PLACES):
                name = f"{kind}-{number}"
                fd = os.open(folder / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                if _locked(fd):
                    return cls(folder, name, fd)
                os.close(fd)
        except OSError as error:
            raise storage_error(error) from error
        raise NotReady(f"all {MAX_PLACES} places for figures are taken")

    def write(self, snapshot: Snapshot) -> None:
        """Whoever reads sees this one or the one before, never a part.

        Raises:
            OSError: the disk refused.
        """
        draft = self._folder / f"{self.name}.part"
        draft.write_bytes(_JSON.dump_json(snapshot))
        draft.replace(self._folder / f"{self.name}.json")

    def leave(self) -> None:
        """The place is free. Doing it again changes nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with suppress(OSError):
                (self._folder / f"{self.name}.json").unlink(missing_ok=True)
            os.close(fd)


def _locked(fd: int) -> bool:
    # Who reads holds a lock for a moment, to see whether it is free.
    for attempt in range(_ATTEMPTS):
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if attempt + 1 < _ATTEMPTS:
                time.sleep(_PAUSE_S)
        else:
            return True
    return False


def read_snapshots(folder: Path, now: datetime) -> list[Snapshot]:
    """Of every process that lives and tells, listeners first. Reads at most MAX_PLACES small files of each kind."""
    found: list[tuple[str, int, Snapshot]] = []
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            place, _, ending = entry.name.partition(".")
            known = _PLACE.fullmatch(place)
            if ending != "json" or known is None or int(known[2]) >= MAX_PLACES:
                continue
            snapshot = _read(folder, place)
            if snapshot is not None and abs((now - snapshot.written_at).total_seconds()) <= STALE_S:
                found.append((known[1], int(known[2]), snapshot))
    return [snapshot for _, _, snapshot in sorted(found, key=lambda one: (one[0] != LISTENER, one[0], one[1]))]


def _read(folder: Path, place: str) -> Snapshot | None:
    try:
        if not _alive(folder / f"{place}.lock"):
            return None
        with (folder / f"{place}.json").open("rb") as stream:
            content = stream.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            logger.warning("figures.too_large", extra={"place": place})
            return None
        snapshot = _JSON.validate_json(content)
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        # Of another version, perhaps: what it tells cannot be told on, and nobody's work depends on it.
        logger.warning("figures.unreadable", extra={"place": place, "error": type(error).__name__})
        return None
    return snapshot if snapshot.place == place else None


def _alive(lock: Path) -> bool:
    fd = os.open(lock, os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return True
        raise
    finally:
        os.close(fd)
    return False


class FiguresPublisher:
    """Tells of one process every second, in a thread of its own. Never in the way: what fails is logged once."""

    def __init__(
        self,
        run_dir: Path,
        kind: str,
        figures: IntakeFigures,
        clock: Clock,
        state: Callable[[], ProcessState] = ProcessState,
        chores: Callable[[], None] | None = None,
    ) -> None:
        """Takes no place and starts no thread before `start`.

        Args:
            run_dir: of the settings.
            kind: LISTENER or HTTP.
            figures: the counts of this process.
            clock: time.
            state: what else there is to tell; called in the publisher's thread.
            chores: work that is done every minute, in the publisher's thread.
        """
        self._folder = run_dir / FOLDER
        self._kind = kind
        self._figures = figures
        self._clock = clock
        self._state = state
        self._chores = chores
        self._started_at = clock.now()
        self._chores_at = clock.monotonic()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._place: Place | None = None
        self._failing = False

    @property
    def place(self) -> str | None:
        """The name under which this process tells; None before the first time."""
        return None if self._place is None else self._place.name

    @property
    def alive(self) -> bool:
        """True while it tells."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Figures are told from now on."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="figures", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> None:
        """Nothing is told any more, and the place is free."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._place is not None:
            self._place.leave()
            self._place = None

    def publish(self) -> None:
        """The figures of this moment are told.

        Raises:
            HeimdallrError: there is no place, or the disk refused.
        """
        if self._place is None:
            self._place = Place.take(self._folder, self._kind)
        try:
            self._place.write(self.snapshot(self._place.name))
        except OSError as error:
            raise storage_error(error) from error

    def snapshot(self, place: str) -> Snapshot:
        """The figures of this moment."""
        state = self._state()
        if len(state.open) > MAX_OPEN:
            state = replace(state, open=state.open[:MAX_OPEN])
        return Snapshot(place, os.getpid(), self._started_at, self._clock.now(), state, self._figures.figures())

    def _run(self) -> None:
        while True:
            try:
                self.publish()
                self._do_chores()
                self._failing = False
            except Exception as error:
                # A process loop: the next round begins anew. Said once, and not every second.
                if not self._failing:
                    known = error.code if isinstance(error, HeimdallrError) else type(error).__name__
                    logger.warning("figures.not_told", exc_info=error, extra={"code": known})
                self._failing = True
            if self._stopping.wait(WRITE_EVERY_S):
                return

    def _do_chores(self) -> None:
        now = self._clock.monotonic()
        if self._chores is None or now - self._chores_at < CHORES_EVERY_S:
            return
        self._chores_at = now
        self._chores()
