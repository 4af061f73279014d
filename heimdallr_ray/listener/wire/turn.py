"""Of the associations of one process, one computes at a time; the others wait for their peers or for the disk.

Threads that all want the interpreter hand it to each other at every system call, and with four associations that costs
more than receiving does. Here it is handed over where an association has to wait anyway.
"""

from __future__ import annotations

import itertools
import threading
import time
from types import TracebackType

LONGEST_S = 0.01
"""An association whose peer never makes it wait lets the others have their turn after so long."""
_LET_OTHERS_S = 0.0002
TURN_S = 60.0
"""Nobody computes a thousandth of it at once: whoever waits longer has found a fault of this program."""


class TurnStuck(RuntimeError):
    """Another association of the process has kept its turn for longer than it ever may."""


class Turn:
    """A lock that its holder gives up while it waits: `with turn:` around all, `with turn.waiting():` around a wait."""

    def __init__(self, longest_s: float = TURN_S) -> None:
        """Nobody's turn; a wait for one ends after `longest_s`."""
        self._longest_s = longest_s
        self._lock = threading.Lock()
        self._counting = threading.Lock()
        self._others = 0
        self._since = 0.0
        self._holder = 0

    def __enter__(self) -> None:
        """It is the caller's turn."""
        self.take()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It is somebody else's turn."""
        if self.mine:
            self.give()

    def waiting(self) -> Waiting:
        """The turn is given up inside; nothing happens where the caller has given it up before."""
        return Waiting(self)

    def share(self) -> None:
        """Somebody else has had a turn, where the caller's has been long and somebody waits for one."""
        if self._others and time.monotonic() - self._since > LONGEST_S and self.mine:
            self.give()
            # A lock that is taken again at once is taken before anybody wakes up.
            time.sleep(_LET_OTHERS_S)
            self.take()

    @property
    def mine(self) -> bool:
        """True where it is the caller's turn."""
        return self._holder == threading.get_ident()

    def take(self) -> None:
        """It is the caller's turn, as soon as nobody else's.

        Raises:
            TurnStuck: nobody gives it up.
        """
        if not self._lock.acquire(blocking=False):
            with self._counting:
                self._others += 1
            taken = self._lock.acquire(timeout=self._longest_s)
            with self._counting:
                self._others -= 1
            if not taken:
                raise TurnStuck(f"no turn within {self._longest_s:g} s")
        self._holder = threading.get_ident()
        self._since = time.monotonic()

    def give(self) -> None:
        """It is somebody else's turn."""
        self._holder = 0
        self._lock.release()


class Waiting:
    """One wait of the holder of a turn."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._given = False

    def __enter__(self) -> None:
        """It is somebody else's turn."""
        if self._turn.mine:
            self._given = True
            self._turn.give()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """It is the caller's turn again."""
        if self._given:
            self._turn.take()


class Untold:
    """Objects that were answered Success, and of which the listener has not heard yet. Safe for several threads."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._numbers = itertools.count(1)
        self._open: set[int] = set()

    def begin(self) -> int:
        """One more, before its answer; returns what `end` asks for."""
        with self._changed:
            number = next(self._numbers)
            self._open.add(number)
        return number

    def end(self, number: int) -> None:
        """The listener has heard of it."""
        with self._changed:
            self._open.discard(number)
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> bool:
        """True once the listener has heard of all that was answered before; False where that took longer."""
        with self._changed:
            before = set(self._open)
            return self._changed.wait_for(lambda: not before & self._open, timeout_s)
