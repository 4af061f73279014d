"""What a process has taken in, refused and waited for: counts that cost about a microsecond each.

Counts are of this process since its start. They are told as a snapshot, which `snapshots.py` carries to whoever asks;
what can be read from the database or the disk is not counted here. No patient data, no AE titles but of what is open.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from heimdallr_ray import errors
from heimdallr_ray.catalog.states import Door, How
from heimdallr_ray.clock import Clock

STORE_BOUNDS_S: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the classes in which the time of a C-STORE, a part of a STOW request or an upload is counted."""
SYNC_BOUNDS_S: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
OTHER: Final = "other"
GATE_REASONS: Final = frozenset(
    {
        "action_too_long",
        "address",
        "application_context",
        "broken",
        "called_ae",
        "calling_ae",
        "command_too_long",
        "context_not_accepted",
        "data_without_command",
        "idle",
        "listener_busy",
        "made_room",
        "malformed_message",
        "malformed_request",
        "no_descriptor",
        "no_process",
        "no_request",
        "no_thread",
        "object_too_large",
        "pdu_too_long",
        "peer_does_not_read",
        "protocol_version",
        "request_too_large",
        "slow_sender",
        "stopping",
        "storage_full",
        "tiny_fragments",
        "tls",
        "too_many_associations",
        "too_many_connections",
        "too_many_from_address",
        "too_many_requests",
        "unexpected_command",
        "unexpected_pdu",
    }
)
"""Why a connection or an association is refused or cut, beside the codes of our errors."""
KINDS: Final = frozenset({"refused", "rejected", "cut", "store", "request"})
"""What was refused: a connection, an association, a connection that was open, an object, a request over HTTP."""
MINUTES: Final = 60


def _codes(family: type[errors.HeimdallrError]) -> Iterator[str]:
    yield family.code
    for leaf in family.__subclasses__():
        yield from _codes(leaf)


REASONS: Final = GATE_REASONS | frozenset(_codes(errors.HeimdallrError))
"""All that may stand as a reason: a closed set, so that no peer decides how many series a scraper keeps."""


@dataclass(frozen=True)
class HistogramValues:
    """How often a time fell into each class; the last one has no upper bound."""

    counts: tuple[int, ...]
    seconds: float


@dataclass(frozen=True)
class OpenNow:
    """One association that is open."""

    id: str
    calling_ae: str
    address: str
    opened_at: datetime
    stored: int = 0
    refused: int = 0


@dataclass(frozen=True)
class Figures:
    """Counts since the start of one process."""

    stored: Mapping[str, int] = field(default_factory=dict[str, int])
    """Objects by door."""
    stored_bytes: Mapping[str, int] = field(default_factory=dict[str, int])
    refused: Mapping[str, Mapping[str, int]] = field(default_factory=dict[str, Mapping[str, int]])
    """By door, then by what and why: `cut.slow_sender`."""
    refused_last_hour: Mapping[str, int] = field(default_factory=dict[str, int])
    """By what and why."""
    store_seconds: Mapping[str, HistogramValues] = field(default_factory=dict[str, HistogramValues])
    """By door; classes of STORE_BOUNDS_S."""
    sync_seconds: HistogramValues = HistogramValues((0,) * (len(SYNC_BOUNDS_S) + 1), 0.0)
    """Of fsync, of an object with its name; classes of SYNC_BOUNDS_S."""
    associations_opened: int = 0
    associations_closed: Mapping[str, int] = field(default_factory=dict[str, int])
    """By how they ended."""


class _Histogram:
    """Not safe by itself: its owner holds a lock."""

    __slots__ = ("_bounds", "_counts", "_seconds")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._seconds = 0.0

    def add(self, seconds: float) -> None:
        self._counts[bisect_left(self._bounds, seconds)] += 1
        self._seconds += seconds

    def values(self) -> HistogramValues:
        return HistogramValues(tuple(self._counts), self._seconds)


class IntakeFigures:
    """The counts of one process. Safe for several threads; no call waits for anything but another call."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._stored = dict.fromkeys(Door, 0)
        self._bytes = dict.fromkeys(Door, 0)
        self._store_seconds = {door: _Histogram(STORE_BOUNDS_S) for door in Door}
        self._sync_seconds = _Histogram(SYNC_BOUNDS_S)
        self._refused: dict[Door, Counter[str]] = {door: Counter() for door in Door}
        self._minutes: deque[tuple[int, Counter[str]]] = deque(maxlen=MINUTES)
        self._opened = 0
        self._closed: Counter[str] = Counter()

    def stored(self, door: Door, n_bytes: int, seconds: float) -> None:
        """An object of `n_bytes` was acknowledged, `seconds` after its first byte (C-STORE: after its command)."""
        with self._lock:
            self._stored[door] += 1
            self._bytes[door] += n_bytes
            self._store_seconds[door].add(seconds)

    def taken_in(self, door: Door, objects: int, n_bytes: int, seconds: float) -> None:
        """A request over HTTP with so many objects was stored, `seconds` after it began: one time for all of them."""
        with self._lock:
            self._stored[door] += objects
            self._bytes[door] += n_bytes
            self._store_seconds[door].add(seconds)

    def refused(self, reason: str, door: Door = Door.DICOM) -> None:
        """Somebody was refused or cut off.

        Args:
            reason: one of REASONS, alone or behind one of KINDS (`store.too_large`); anything else counts as `other`.
            door: which one.
        """
        what, dot, why = reason.rpartition(".")
        known = why if why in REASONS else OTHER
        if dot:
            known = f"{what if what in KINDS else OTHER}.{known}"
        minute = int(self._clock.monotonic() // 60)
        with self._lock:
            self._refused[door][known] += 1
            if not self._minutes or self._minutes[-1][0] != minute:
                self._minutes.append((minute, Counter()))
            self._minutes[-1][1][known] += 1

    def association_opened(self) -> None:
        """An association was accepted."""
        with self._lock:
            self._opened += 1

    def association_closed(self, how: How) -> None:
        """An association has ended."""
        with self._lock:
            self._closed[how.value] += 1

    def synced(self, seconds: float) -> None:
        """The disk took `seconds` to make an object durable."""
        with self._lock:
            self._sync_seconds.add(seconds)

    def figures(self) -> Figures:
        """All counts, of one moment."""
        oldest = int(self._clock.monotonic() // 60) - MINUTES
        with self._lock:
            recent: Counter[str] = Counter()
            for minute, reasons in self._minutes:
                if minute > oldest:
                    recent.update(reasons)
            return Figures(
                stored=_by_word(self._stored),
                stored_bytes=_by_word(self._bytes),
                refused={door.value: dict(reasons) for door, reasons in self._refused.items() if reasons},
                refused_last_hour=dict(recent),
                store_seconds={door.value: one.values() for door, one in self._store_seconds.items()},
                sync_seconds=self._sync_seconds.values(),
                associations_opened=self._opened,
                associations_closed=dict(self._closed),
            )


def _by_word(counts: Mapping[Door, int]) -> dict[str, int]:
    return {door.value: count for door, count in counts.items()}


def refusals_last_hour(all_figures: Iterable[Figures]) -> dict[str, int]:
    """Of several processes together, by reason, most first."""
    total: Counter[str] = Counter()
    for one in all_figures:
        total.update(one.refused_last_hour)
    return dict(total.most_common())
