"""Engines as plain processes that a test's studies kill: what Serve does for them, without Serve."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from ray.exceptions import ActorDiedError

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.deployments.attendance import Attendance
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.queue.engine_calls import EngineCalls, EngineId, Ticket
from heimdallr_ray.queue.owners import owner_name

NODE = "node"
PLACES = 2
STAY_S = 0.3
_SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Work:
    """What a study does to its engine."""

    kills: bool = False
    beside: int = 1
    """Studies inside, itself included, before it kills for the first time."""


def serve(url: str, orders: Connection) -> None:
    """One engine: works on what comes, each in a thread, until the pipe ends or a study kills it."""
    database = Database(url)
    engine = EngineId(owner_name(), NODE, "models")
    calls = EngineCalls(database, SystemClock())
    door = Attendance(calls, engine, PLACES)
    inside = threading.Semaphore(0)
    answering = threading.Lock()

    def work(ticket: Ticket, one: Work) -> None:
        alone = calls.must_be_alone(ticket, engine)
        try:
            with door.of(ticket):
                if one.kills:
                    for _ in range(0 if alone else one.beside - 1):
                        inside.acquire(timeout=30)
                    os.kill(os.getpid(), signal.SIGKILL)
                inside.release()
                time.sleep(STAY_S)
            answer: object = engine.replica
        except HeimdallrError as error:
            answer = error
        with answering:
            orders.send((ticket.call_id, answer))

    while True:
        try:
            ticket, one = orders.recv()
        except EOFError:
            return
        threading.Thread(target=work, args=(ticket, one), daemon=True).start()


@dataclass
class Engine:
    """A running engine process and the answers that it has given."""

    process: BaseProcess
    orders: Connection
    answers: dict[str, object] = field(default_factory=dict[str, object])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def read(self) -> bool:
        """Takes in what has been answered; False where the process is gone."""
        with self.lock:
            try:
                while self.orders.poll(0):
                    call_id, answer = self.orders.recv()
                    self.answers[call_id] = answer
            except (EOFError, ConnectionError):
                return False
        return True


class Response:
    """As Serve's: `result` waits a while, and says when the process died."""

    def __init__(self, engine: Engine, call_id: str) -> None:
        self._engine, self._call_id = engine, call_id

    def result(self, *, timeout_s: float) -> object:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            alive = self._engine.read()
            if self._call_id in self._engine.answers:
                answer = self._engine.answers[self._call_id]
                if isinstance(answer, Exception):
                    raise answer
                return answer
            if not alive:
                self._engine.process.join(10)
                raise ActorDiedError
            time.sleep(0.01)
        raise TimeoutError

    def cancel(self) -> None:
        """An engine's thread cannot be stopped."""


class Handle:
    """A deployment of one engine that is replaced where it died."""

    def __init__(self, url: str) -> None:
        self.run = self
        self.engines: list[Engine] = []
        self._url = url
        self._lock = threading.Lock()

    def remote(self, work: Work, ticket: Ticket, _until: float) -> Response:
        with self._lock:
            if not self.engines or not self.engines[-1].read():
                self.engines.append(self._started())
            engine = self.engines[-1]
            try:
                engine.orders.send((ticket, work))
            except OSError:
                engine.process.join(10)
        return Response(engine, ticket.call_id)

    def end(self) -> None:
        """No engine is left."""
        for engine in self.engines:
            engine.process.kill()
            engine.process.join(10)
            engine.orders.close()

    def _started(self) -> Engine:
        ours, theirs = _SPAWN.Pipe()
        process: Any = _SPAWN.Process(target=serve, args=(self._url, theirs), daemon=True)
        process.start()
        theirs.close()
        return Engine(process, ours)
