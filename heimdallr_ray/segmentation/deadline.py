"""How long an engine may work on one study: one deadline for all its tasks, below the time that the caller waits."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final, Protocol

from heimdallr_ray.errors import EngineUnavailable, MadeWay, OutOfTime

CALL_S: Final = 1800.0
"""Longest a caller waits for a study, the time in which it queues at the replica included."""
ANSWER_S: Final = 60.0
"""For what comes after the deadline: a child that is ended, labels that travel back."""
STUDY_S: Final = CALL_S - ANSWER_S
"""What an engine has for a study that finds it free."""
_HELD_UP: Final = 0.1
"""Share of STUDY_S that a study may lose to others before its lateness is theirs."""
_ALONE_S: Final = 86400.0


class _Lock(Protocol):
    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """As threading's."""
        ...

    def release(self) -> None:
        """As threading's."""
        ...


class Deadline:
    """When an engine has to be through with one study, and how long others held it up."""

    def __init__(
        self,
        limit_s: float = _ALONE_S,
        now: Callable[[], float] = time.monotonic,
        gives_way: Callable[[], bool] | None = None,
    ) -> None:
        """The time runs from here.

        Args:
            limit_s: seconds from now; a day where nobody waits for the answer.
            now: a clock, seconds.
            gives_way: asked before each tile whether other work waits, for which this one ends; None: it is not ended.
        """
        self._now = now
        self._gives_way = gives_way
        self._limit_s = limit_s
        self._end = now() + limit_s
        self._waited_s = 0.0

    @classmethod
    def before(
        cls,
        moment: float | None,
        wall: Callable[[], float] = time.time,
        gives_way: Callable[[], bool] | None = None,
    ) -> Deadline:
        """That of a study whose caller waits until `moment` of the wall clock; None: as long as callers wait."""
        limit_s = STUDY_S if moment is None else min(STUDY_S, moment - ANSWER_S - wall())
        return cls(limit_s, gives_way=gives_way)

    @property
    def optional(self) -> bool:
        """The work gives way to any other, so it changes nothing for those who come after it."""
        return self._gives_way is not None

    @property
    def left_s(self) -> float:
        """Seconds, never below 0."""
        return max(0.0, self._end - self._now())

    @property
    def held_up(self) -> bool:
        """Others, before it came to the engine or inside, took so much of its time that being late is not its fault."""
        return max(0.0, STUDY_S - self._limit_s) + self._waited_s > _HELD_UP * STUDY_S

    @contextmanager
    def blamed(self) -> Generator[None]:
        """A study that is late because others held it up may be tried again.

        Raises:
            EngineUnavailable: in the place of such an OutOfTime.
        """
        try:
            yield
        except OutOfTime as error:
            if not self.held_up:
                raise
            raise EngineUnavailable(f"other studies took the time of this one: {error.detail}") from error

    def require(self, what: str) -> None:
        """Nothing happens before the deadline.

        Raises:
            OutOfTime: it is past; says before `what`.
            MadeWay: other work waits, to which this one gives way.
        """
        if self._gives_way is not None and self._gives_way():
            raise MadeWay(f"other work came before {what}")
        if not self.left_s:
            raise OutOfTime(f"no time was left for {what}: a study has {STUDY_S:.0f} s")

    @contextmanager
    def holding(self, lock: _Lock, what: str) -> Generator[None]:
        """The block runs with the lock held; the wait for it is told from the study's own time.

        Raises:
            OutOfTime: it was not free before the deadline.
            MadeWay: as `require`.
        """
        began = self._now()
        free = lock.acquire(timeout=self.left_s)
        self._waited_s += self._now() - began
        if not free:
            raise OutOfTime(f"no time was left for {what}: another study held the engine")
        try:
            self.require(what)
            yield
        finally:
            lock.release()
