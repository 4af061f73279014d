"""Receiving processes as the listener sees them: started, given connections, heard, started again where they die."""

from __future__ import annotations

import base64
import errno
import itertools
import logging
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from queue import SimpleQueue

from heimdallr_ray import logs
from heimdallr_ray.catalog.states import How
from heimdallr_ray.errors import BadSetting, HeimdallrError, NotReady
from heimdallr_ray.listener.action import Action
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.commitment import CommitmentDesk
from heimdallr_ray.listener.gate import Refusal
from heimdallr_ray.listener.registry import Registry
from heimdallr_ray.listener.wire.messages import Channel, Message, decode_stored, encode_opened

logger = logging.getLogger(__name__)

START_S = 60.0
AGAIN_FIRST_S = 0.5
AGAIN_LAST_S = 30.0
HUNG_S = 60.0
"""A process that leaves a question unanswered for so long is ended and started again."""
ANSWER_S = 30.0
"""A process gives up what it asked after so long; a peer waits hardly longer for the answer to its request."""
SILENT_S = 20.0
"""For so long, and it is told."""
ENDED = "the receiving process has ended"
LEAVE_S = 5.0
SEND_S = 5
"""For one message to a process that does not read."""


@dataclass
class _Child:
    process: subprocess.Popen[bytes]
    channel: Channel
    addresses: Counter[str] = field(default_factory=Counter[str])
    """Its connections by address; none with zero."""
    requests: SimpleQueue[tuple[float, Message] | None] = field(
        default_factory=SimpleQueue[tuple[float, Message] | None]
    )
    """Requests for associations, each with when it was heard (seconds, monotonic); None: no more will come."""
    associations: dict[str, OpenAssociation] = field(default_factory=dict[str, OpenAssociation])
    ready: threading.Event = field(default_factory=threading.Event)
    failure: str = ""
    passed: int = 0
    """Number of the last barrier that came back."""
    silent_since: float | None = None
    """When it was asked what it has not answered yet."""
    ended: bool = False
    """Its associations are closed, and it gets no more."""

    def left(self, address: str) -> None:
        """One connection from there fewer; an address without any is forgotten."""
        self.addresses[address] -= 1
        if self.addresses[address] <= 0:
            del self.addresses[address]


class ReceivingProcesses:
    """Serves connections in `count` other processes."""

    def __init__(
        self,
        registry: Registry,
        desk: CommitmentDesk | None,
        gone: Callable[[str], None],
        *,
        count: int,
        tls: tuple[str, str, str] | None,
        synced: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        """`tls`: certificate, key and authorities; `synced` hears how long the disk took for each object."""
        self._registry = registry
        self._receiver = registry.receiver
        self._desk = desk
        self._gone = gone
        self._count = count
        self._synced = synced
        self._answer_s = ANSWER_S
        spool = self._receiver.spool
        self._config: Message = {
            "spool": str(spool.root),
            "marks": [spool.marks.min_free_bytes, spool.marks.warn_percent, spool.marks.refuse_percent],
            "max_object_bytes": spool.max_object_bytes,
            "durable": spool.durable,
            "commitment": desk is not None,
            "answer_s": self._answer_s,
            "tls": list(tls) if tls else None,
            "log": asdict(where.of("receiver")) if (where := logs.place()) else None,
        }
        self._changed = threading.Condition()
        self._children: list[_Child] = []
        self._starting: list[_Child] = []
        """Not ready yet; they have served nobody."""
        self._starts = 0
        """Processes that the operating system is just making."""
        self._barriers = itertools.count(1)
        self._stopping = threading.Event()

    @property
    def alive(self) -> bool:
        """True while at least one process serves."""
        with self._changed:
            return bool(self._children)

    @property
    def trouble(self) -> str:
        """What is wrong, in words; empty where every process serves and answers."""
        with self._changed:
            running = len(self._children)
            since = [child.silent_since for child in self._children]
        if running < self._count:
            return f"{running} of {self._count} receiving processes run"
        now = time.monotonic()
        silent_s = max((now - asked for asked in since if asked is not None), default=0.0)
        return f"a receiving process has not answered for {silent_s:.0f} s" if silent_s > SILENT_S else ""

    @property
    def pids(self) -> list[int]:
        """Of the processes."""
        with self._changed:
            return [child.process.pid for child in self._children]

    def start(self) -> None:
        """Every process is ready.

        Raises:
            BadSetting: what TLS needs cannot be read.
            NotReady: a process does not start within START_S.
        """
        self._stopping.clear()
        started: list[_Child] = []
        try:
            for _ in range(self._count):
                if (child := self._spawn()) is not None:
                    started.append(child)
            deadline = time.monotonic() + START_S
            ready = [child.ready.wait(max(0.0, deadline - time.monotonic())) for child in started]
            if failure := next((child.failure for child in started if child.failure), ""):
                raise BadSetting(failure)
            with self._changed:
                serving = sum(child in self._children for child in started)
            if not all(ready) or serving < self._count:
                raise NotReady("a receiving process does not start")
        except (OSError, HeimdallrError) as error:
            self._stopping.set()
            for child in started:
                child.process.kill()
            if isinstance(error, OSError):
                raise NotReady("a receiving process cannot be started") from error
            raise

    def _spawn(self) -> _Child | None:
        """A new process, not ready yet; None once a stop was asked for, which sees every process or keeps it away."""
        with self._changed:
            if self._stopping.is_set():
                return None
            self._starts += 1
        made: list[_Child] = []
        try:
            made.append(_Child(*self._process()))
        finally:
            with self._changed:
                self._starts -= 1
                self._starting.extend(made)
                stopped = self._stopping.is_set()
                self._changed.notify_all()
        (child,) = made
        threading.Thread(target=self._hear, args=(child,), name="receiving-process", daemon=True).start()
        threading.Thread(target=self._decide, args=(child,), name="association-requests", daemon=True).start()
        if stopped:
            child.process.kill()
        _tell(child, self._config)
        return child

    def _process(self) -> tuple[subprocess.Popen[bytes], Channel]:
        ours, theirs = socket.socketpair()
        # A process that does not read any more must not hold up whoever tells it something.
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", SEND_S, 0))
        try:
            with theirs:
                process = subprocess.Popen(  # noqa: S603
                    [sys.executable, "-m", "heimdallr_ray.listener.wire.child", str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
        except OSError:
            ours.close()
            raise
        return process, Channel(ours)

    # Connections -----------------------------------------------------------------------------------------------------

    def serve(self, connection: socket.socket, address: str) -> None:
        """The connection goes to the process with the fewest."""
        with self._changed:
            children = sorted(self._children, key=lambda one: one.addresses.total())
        with connection:
            for child in children:
                with self._changed:
                    child.addresses[address] += 1
                if _tell(child, {"t": "serve", "address": address}, fd=connection.fileno()):
                    return
                with self._changed:
                    given_back = not child.addresses[address]
                    if not given_back:
                        child.left(address)
                if given_back:
                    # With all others of the process, which has ended meanwhile.
                    self._registry.refuse_connection("no_process", address)
                    return
        self._gone(address)
        self._registry.refuse_connection("no_process", address)

    def sync(self, timeout_s: float) -> bool:
        """True once the registry knows all that was acknowledged before; False where that took longer.

        A process that has been silent for HUNG_S is ended, and another one takes its place.
        """
        number = next(self._barriers)
        with self._changed:
            children = list(self._children)
        for child in children:
            if child.silent_since is None:
                child.silent_since = time.monotonic()
            _tell(child, {"t": "barrier", "id": number})
        with self._changed:
            done = self._changed.wait_for(
                lambda: all(child.passed >= number or child not in self._children for child in children), timeout_s
            )
        for child in children:
            if child.silent_since is not None and time.monotonic() - child.silent_since > HUNG_S:
                logger.error("receiving_process.hangs", extra={"pid": child.process.pid})
                child.process.kill()
        return done

    def stop(self, grace_s: float) -> None:
        """Open connections got `grace_s` to end by themselves, then they were cut off; the processes have ended."""
        self._stopping.set()
        with self._changed:
            children, starting = list(self._children), list(self._starting)
        for child in starting:
            child.process.kill()
        for child in children:
            _tell(child, {"t": "stop", "grace_s": grace_s})
        with self._changed:
            self._changed.wait_for(self._all_ended, 2 * grace_s + LEAVE_S)
            left = self._children + self._starting
        for child in left:
            child.process.kill()
        with self._changed:
            self._changed.wait_for(self._all_ended, LEAVE_S)

    def _all_ended(self) -> bool:
        return not self._children and not self._starting and not self._starts

    # What a process says ---------------------------------------------------------------------------------------------

    def _hear(self, child: _Child) -> None:
        try:
            for message in child.channel.messages():
                self._handle(child, message)
        except Exception:
            # A process loop: whatever it said, it cannot be trusted any more, and another one takes its place.
            logger.exception("receiving_process.broken", extra={"pid": child.process.pid})
        self._lost(child)

    def _handle(self, child: _Child, message: Message) -> None:
        kind = message["t"]
        registry = self._registry
        if kind == "stored":
            self._stored(child, message)
        elif kind == "request":
            # Whether there is room is asked of the disk, which may take its time; what else is said does not wait.
            child.requests.put((time.monotonic(), message))
        elif kind == "close":
            opened = child.associations.pop(message["association"], None)
            if opened is not None:
                registry.close(opened, How(message["how"]), message["reason"])
        elif kind == "gone":
            with self._changed:
                child.left(message["address"])
            self._gone(message["address"])
        elif kind == "synced":
            for seconds in message["seconds"]:
                self._synced(seconds)
        elif kind == "store_refused":
            opened = child.associations.get(message["association"])
            if opened is not None:
                registry.object_refused(opened, *message["fields"])
        elif kind == "cut":
            registry.cut(message["reason"], message["address"], child.associations.get(message["association"] or ""))
        elif kind == "reject":
            registry.reject(Refusal(*message["refusal"]), *message["names"])
        elif kind == "refuse":
            registry.refuse_connection(message["reason"], message["address"])
        elif kind == "count":
            registry.count_refusal(message["reason"])
        elif kind == "overflowed":
            self._receiver.look_again()
        elif kind == "echo":
            registry.tally.add("echo")
        elif kind == "ask":
            # The database may take its time; what else the process says does not wait for it.
            threading.Thread(target=self._ask, args=(child, message), name="commitment", daemon=True).start()
        elif kind == "barrier":
            with self._changed:
                child.passed = max(child.passed, message["id"])
                child.silent_since = None
                self._changed.notify_all()
        elif kind == "ready":
            with self._changed:
                self._starting.remove(child)
                self._children.append(child)
            child.ready.set()
        elif kind == "failed":
            child.failure = message["detail"]
            child.ready.set()

    def _decide(self, child: _Child) -> None:
        """Requests for associations are answered one after the other, beside all else that the process says."""
        while (heard := child.requests.get()) is not None:
            heard_s, message = heard
            if time.monotonic() - heard_s > self._answer_s:
                # Given up by the process, which has told its end already.
                continue
            try:
                self._request(child, message)
            except Exception:
                # A process loop: as where something else that a process says cannot be dealt with.
                logger.exception("receiving_process.broken", extra={"pid": child.process.pid})
                child.process.kill()

    def _request(self, child: _Child, message: Message) -> None:
        opened = self._registry.request(
            message["called_ae"], message["calling_ae"], message["address"], message["implementation"]
        )
        if isinstance(opened, Refusal):
            fields = [opened.reason, opened.result, opened.source, opened.diagnostic]
            self._answer(child, message, {"refusal": fields})
            return
        with self._changed:
            ended = child.ended
            if not ended:
                child.associations[opened.id] = opened
        if ended:
            self._registry.close(opened, How.ABORTED, ENDED)
        else:
            self._answer(child, message, {"opened": encode_opened(opened)})

    def _stored(self, child: _Child, message: Message) -> None:
        for stored in decode_stored(message, child.associations, self._receiver.spool.ready):
            self._registry.stored(*stored)

    def _ask(self, child: _Child, message: Message) -> None:
        opened = child.associations.get(message["association"])
        if opened is None or self._desk is None:
            return
        status = self._registry.ask(
            self._desk,
            opened,
            base64.b64decode(message["dataset"]),
            message["transfer_syntax"],
            Action(*message["action"]),
        )
        self._answer(child, message, {"status": status})

    def _answer(self, child: _Child, question: Message, answer: Message) -> None:
        _tell(child, {"t": "answer", "id": question["id"], **answer})

    def _lost(self, child: _Child) -> None:
        """The process has ended: what it acknowledged last is found in the spool, then its associations end too."""
        child.channel.close()
        try:
            status = child.process.wait(LEAVE_S)
        except subprocess.TimeoutExpired:
            child.process.kill()
            status = child.process.wait(LEAVE_S)
        # While its associations are open no study of theirs closes without what is found here.
        self._replay()
        child.requests.put(None)
        with self._changed:
            child.ended = True
        for opened in list(child.associations.values()):
            self._registry.close(opened, How.ABORTED, ENDED)
        with self._changed:
            addresses, child.addresses = child.addresses, Counter()
        for address in addresses.elements():
            self._gone(address)
        with self._changed:
            was_ready = child in self._children
            (self._children if was_ready else self._starting).remove(child)
            self._changed.notify_all()
        child.ready.set()
        if was_ready and not self._stopping.is_set():
            logger.error("receiving_process.died", extra={"pid": child.process.pid, "status": status})
            self._replace()

    def _replay(self) -> None:
        try:
            self._receiver.spool.sweep()
            self._receiver.replay_ready(0.0)
        except HeimdallrError as error:
            # The watcher finds them too, a minute later.
            logger.warning("spool.replay_postponed", extra={"code": error.code, "reason": error.detail})

    def _replace(self) -> None:
        """Another process serves, as soon as one starts."""
        pause_s = AGAIN_FIRST_S
        while True:
            try:
                child = self._spawn()
            except OSError as error:
                logger.warning(
                    "receiving_process.not_started", extra={"error": errno.errorcode.get(error.errno or 0, "")}
                )
            else:
                if child is None:
                    return
                if child.ready.wait(START_S) and not child.failure and child.process.poll() is None:
                    return
                child.process.kill()
            self._stopping.wait(pause_s)
            pause_s = min(2 * pause_s, AGAIN_LAST_S)


def _tell(child: _Child, message: Message, fd: int | None = None) -> bool:
    """True where the process will read the message. One that does not take it is ended: half a message says nothing."""
    try:
        child.channel.send([message], fd)
    except OSError:
        child.process.kill()
        return False
    return True
