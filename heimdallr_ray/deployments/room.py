"""Who is inside an engine: several studies at once, or one that must be alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager

from heimdallr_ray.errors import EngineUnavailable


class Room:
    """Places for `places` threads; one that must be alone waits until the others have left, and none enters meanwhile.

    Knows nothing of studies, Ray or the database.
    """

    def __init__(self, places: int) -> None:
        """An empty room."""
        self._places = places
        self._changed = threading.Condition()
        self._inside = 0
        self._reserved = False
        """Somebody is alone inside, or waits for the others to leave."""

    @contextmanager
    def place(self, *, alone: bool, timeout_s: float) -> Generator[None]:
        """The block runs inside.

        Args:
            alone: nobody else is inside meanwhile.
            timeout_s: longest wait for a place, and then for the others to leave.

        Raises:
            EngineUnavailable: no place within the bound.
        """
        with self._changed:
            if alone:
                self._wait(lambda: not self._reserved, timeout_s)
                self._reserved = True
                try:
                    self._wait(lambda: self._inside == 0, timeout_s)
                except EngineUnavailable:
                    self._release()
                    raise
            else:
                self._wait(lambda: not self._reserved and self._inside < self._places, timeout_s)
            self._inside += 1
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                if alone:
                    self._release()
                self._changed.notify_all()

    def _release(self) -> None:
        self._reserved = False
        self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool], timeout_s: float) -> None:
        if not self._changed.wait_for(ready, timeout_s):
            raise EngineUnavailable(f"other studies did not leave the engine within {timeout_s:.0f} s")
