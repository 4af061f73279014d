"""The listener's actor as the supervisor sees it: made, asked without waiting long, made anew where Ray gave it up."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import ray
from ray.exceptions import ActorUnavailableError, GetTimeoutError, RayError

from heimdallr_ray.errors import NotReady
from heimdallr_ray.listener.actor import ACTOR_NAME, DicomScp
from heimdallr_ray.operations.rayhead import NAMESPACE

log = logging.getLogger(__name__)

ANSWER_S = 1.0
REMAKE_S = 30.0
"""Least time between two new actors: one that cannot start costs seconds of CPU each time."""


class _Request:
    """A call that is made once and asked for again and again until it has ended: what hangs does not pile up."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call
        self._reference: Any = None

    def answer(self, timeout_s: float) -> Any:  # noqa: ANN401
        """What the call gave.

        Raises:
            GetTimeoutError: it has not ended yet.
            RayError: it failed.
        """
        if self._reference is None:
            self._reference = self._call()
        try:
            found: Any = cast(Any, ray).get(self._reference, timeout=timeout_s)
        except GetTimeoutError:
            raise
        except BaseException:
            self._reference = None
            raise
        self._reference = None
        return found


class ListenerActor:
    """The one detached SCP actor of a running Ray head."""

    def __init__(self, settings_file: Path, build: str) -> None:
        """The actor is made, or the one that is there is taken; `wait_ready` says when it answers."""
        self._arguments = (str(settings_file), build)
        self.answers = False
        """Whether it said itself that it does not work: then a restart may help, and Ray does not see that it must."""
        self._take()

    def _take(self) -> None:
        made = DicomScp.options(name=ACTOR_NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True)
        self._handle: Any = made.remote(*self._arguments)
        self._made_at = time.monotonic()
        self._closed = False
        self._status = _Request(lambda: self._handle.status.remote())
        self._drain = _Request(lambda: self._handle.drain.remote())

    def wait_ready(self, timeout_s: float) -> None:
        """The port answers.

        Raises:
            NotReady: not within `timeout_s`, or it cannot.
        """
        try:
            self._status.answer(timeout_s)
        except Exception as error:
            raise NotReady(f"the DICOM listener did not start: {error}") from error

    def trouble(self) -> str:
        """What is wrong with it, in words; empty where it works. An actor that Ray has given up is made anew."""
        self.answers = False
        try:
            status = self._status.answer(ANSWER_S)
        except GetTimeoutError:
            return "it does not answer"
        except ActorUnavailableError:
            return "it is being restarted"
        except (RayError, ConnectionError) as error:
            return self._remake(error)
        self.answers = not status["healthy"]
        return str(status["trouble"])

    def _remake(self, error: Exception) -> str:
        reason = f"it has ended: {_last_line(error)}"
        if time.monotonic() - self._made_at >= REMAKE_S:
            log.warning("listener.made_anew", extra={"reason": reason})
            try:
                self._take()
            except (RayError, OSError, ValueError) as failure:
                log.warning("listener.not_made", extra={"code": type(failure).__name__, "detail": _last_line(failure)})
        return reason

    def restart(self) -> None:
        """Its process is ended and Ray starts it again: for one that answers but does not work."""
        try:
            cast(Any, ray).kill(self._handle, no_restart=False)
        except (RayError, ValueError) as error:
            log.warning("listener.not_restarted", extra={"code": type(error).__name__, "detail": _last_line(error)})

    def drained(self) -> bool:
        """True where its port is closed and what it acknowledged has become rows. Closes the port where it is open."""
        try:
            # `status` says draining from the first moment on; that the last association has ended, only `drain` says.
            if not self._closed:
                self._drain.answer(ANSWER_S)
                self._closed = True
            status = self._status.answer(ANSWER_S)
        except RayError:
            # Asked again soon: `trouble` tells of what lasts, and a restarted listener finds the mark.
            return False
        return int(status["spool_depth"]) == 0

    def stop(self, timeout_s: float) -> None:
        """It is gone for good.

        Raises:
            RayError: it did not end by itself within `timeout_s`; it was killed.
        """
        try:
            cast(Any, ray).get(self._handle.stop.remote(), timeout=timeout_s)
        finally:
            cast(Any, ray).kill(self._handle)


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1][:300] if lines else type(error).__name__
