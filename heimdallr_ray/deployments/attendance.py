"""Each study signs in before an engine begins on it and out when it is through; a dead engine signs nobody out."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from heimdallr_ray.deployments.room import Room
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.queue.engine_calls import EngineCalls, EngineId, Ticket
from heimdallr_ray.segmentation.deadline import CALL_S
from heimdallr_ray.segmentation.weights import MANIFEST_NAME

log = logging.getLogger(__name__)

WAIT_S = CALL_S
"""Longest wait for a place: as long as a caller waits for the answer."""


def identity_of(build: str, weights_dir: Path, device: str) -> str:
    """Digest of what an engine computes with: the package, the models, the device."""
    digest = hashlib.sha256(f"{build}\x1f{device}\x1f".encode())
    digest.update((weights_dir / MANIFEST_NAME).read_bytes())
    return digest.hexdigest()


class Attendance:
    """The door of one engine."""

    def __init__(self, calls: EngineCalls, engine: EngineId, places: int) -> None:
        """`places`: studies that the engine takes at once."""
        self._calls = calls
        self._engine = engine
        self._room = Room(places)

    @contextmanager
    def of(self, ticket: Ticket | None) -> Generator[None]:
        """The block runs while the study is signed in; alone in the engine where one has died under it before.

        Args:
            ticket: of the call; None for a call that belongs to no job.

        Raises:
            EngineKilled: engines died under this study too often.
            StaleLease: nobody waits for the answer any more.
            EngineUnavailable: no place within WAIT_S.
            DatabaseBusy: the study could not be signed in, so it was not begun.
        """
        alone = ticket is not None and self._calls.must_be_alone(ticket, self._engine)
        with self._room.place(alone=alone, timeout_s=WAIT_S):
            if ticket is None:
                yield
                return
            self._calls.enter(ticket, self._engine)
            try:
                yield
            finally:
                self._leave(ticket)

    def _leave(self, ticket: Ticket) -> None:
        try:
            self._calls.leave(ticket)
        except HeimdallrError as error:
            # The answer is worth more than the row, which is believed only where this process is gone.
            log.warning("call.not_struck_out", extra={"job": ticket.job_id, "code": error.code})
