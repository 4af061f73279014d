"""pynetdicom's reactor thread, really at rest while somebody else waits for an answer.

`Association.send_c_store` and the other `send_` methods clear `_reactor_checkpoint` and look at `_is_paused`. That flag
may still be true from the last pause while the reactor already runs again; it then takes the answer that the sender
waits for, and throws it away.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Final, cast

from pynetdicom.association import Association

REST_S: Final = 0.5
"""A reactor passes its checkpoint every millisecond; so often is looked whether it still lives."""


class Checkpoint:
    """In place of the `threading.Event` that a reactor passes; knows whether the reactor rests at it."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._open = True
        self._resting = False

    def is_set(self) -> bool:
        """True where the reactor may pass."""
        return self._open

    def set(self) -> None:
        """The reactor may pass."""
        with self._changed:
            self._open = True
            self._changed.notify_all()

    def clear(self) -> None:
        """The reactor rests when it comes here next."""
        with self._changed:
            self._open = False

    def wait(self, timeout: float | None = None) -> bool:
        """Called by the reactor: it rests while the checkpoint is closed."""
        with self._changed:
            # One that was opened and closed again before it woke has not passed.
            self._resting = not self._open
            self._changed.notify_all()
            passed = self._changed.wait_for(lambda: self._open, timeout)
            self._resting = False
            return passed

    def rest(self, timeout_s: float) -> bool:
        """The reactor rests until `set`; False where it did not come here within `timeout_s`."""
        with self._changed:
            self._open = False
            return self._changed.wait_for(lambda: self._resting, timeout_s)


@contextmanager
def at_rest(association: Association, timeout_s: float) -> Generator[bool]:
    """The reactor takes no message while the block runs: what the peer answers there is the block's.

    Yields:
        False where the reactor did not come to rest within `timeout_s`, or at all: it has ended, for the peer has gone.
    """
    checkpoint = _checkpoint_of(association)
    deadline = time.monotonic() + timeout_s
    try:
        while not (resting := checkpoint.rest(min(REST_S, timeout_s))):
            if not association.is_established or time.monotonic() > deadline:
                break
        yield resting
    finally:
        checkpoint.set()


def _checkpoint_of(association: Association) -> Checkpoint:
    """The checkpoint of this association's reactor, put in the place of pynetdicom's own."""
    provider = cast(Any, association)
    known = provider._reactor_checkpoint
    if isinstance(known, Checkpoint):
        return known
    made = Checkpoint()
    provider._reactor_checkpoint = made
    return made
