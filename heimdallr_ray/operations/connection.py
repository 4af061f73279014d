"""This process's connection to its Ray head: opened once, and ended before the head is.

While Ray connects, the death of its node ends the whole connecting process from within (core_worker_process.cc leaves
with `_exit` where it cannot register at the raylet). A start that is stopped at that moment would clean nothing up, so
whoever ends the head waits for the connection first.
"""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from heimdallr_ray.errors import NotReady
from heimdallr_ray.operations import ports
from heimdallr_ray.operations.bounded import within
from heimdallr_ray.operations.rayhead import NAMESPACE, RayHead, environment

ATTEMPT_EVERY_S = 0.3


def ray_module() -> Any:  # noqa: ANN401
    """Ray, whose types do not describe it; imported late, for its import reads the environment."""
    import ray

    return ray


class Connection:
    """Connects this process to a Ray head, and disconnects it."""

    def __init__(self) -> None:
        """Not connected."""
        self._closing = threading.Event()
        self._at_rest = threading.Event()
        self._at_rest.set()
        self._tried = False

    def open(self, head: RayHead, deadline: float) -> None:
        """This process is connected to `head`, or `close` was called meanwhile.

        Raises:
            NotReady: the head ended, or does not answer before `deadline` (monotonic seconds).
        """
        os.environ.update(environment(head.where))
        os.environ.pop("RAY_ADDRESS", None)
        ray = ray_module()
        while not self._closing.is_set():
            head.require_alive()
            if time.monotonic() > deadline:
                raise NotReady("the Ray head does not answer")
            # ray.init waits for minutes on a port where nobody listens.
            if not ports.answers(head.gcs_port):
                time.sleep(ATTEMPT_EVERY_S)
                continue
            try:
                if self._attempt(ray, head.address):
                    return
            except (ConnectionError, RuntimeError, OSError) as error:
                if time.monotonic() > deadline:
                    raise NotReady(f"the Ray head does not answer: {error}") from error
                time.sleep(ATTEMPT_EVERY_S)

    def _attempt(self, ray: Any, address: str) -> bool:  # noqa: ANN401
        """True once connected; False where `close` came first."""
        # In this order: whoever closes sees either that we are under way, or we see that he closes.
        self._at_rest.clear()
        try:
            if self._closing.is_set():
                return False
            self._tried = True
            ray.init(address=address, namespace=NAMESPACE, logging_level="ERROR", log_to_driver=False)
            return True
        finally:
            self._at_rest.set()

    def close(self, attempt_s: float, disconnect_s: float) -> None:
        """This process is not connected any more, and does not connect again.

        Args:
            attempt_s: how long an attempt to connect that is under way may take to end.
            disconnect_s: how long the disconnection may take.

        Raises:
            NotReady: it is still connecting, or still connected: the end of the head may end this process too.
        """
        self._closing.set()
        if not self._at_rest.wait(attempt_s):
            raise NotReady(f"Ray still connects after {attempt_s:.0f} s")
        if self._tried:
            within("Ray's shutdown", time.monotonic() + disconnect_s, ray_module().shutdown)
