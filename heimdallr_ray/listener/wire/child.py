"""A receiving process: associations and spool files, nothing else. `python -m heimdallr_ray.listener.wire.child FD`.

It ends with the listener that started it, even where that was killed; what it acknowledged is in the spool.
"""

from __future__ import annotations

import base64
import itertools
import logging
import os
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from heimdallr_ray import logs
from heimdallr_ray.catalog.states import How
from heimdallr_ray.clock import Clock, SystemClock
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener.action import Action, ActionStatus
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.facts import Accepted
from heimdallr_ray.listener.gate import Refusal
from heimdallr_ray.listener.heap import keep_for_good
from heimdallr_ray.listener.room import Watermarks
from heimdallr_ray.listener.spool import Spool
from heimdallr_ray.listener.wire.messages import Channel, Message, Stored, decode_opened, encode_stored
from heimdallr_ray.listener.wire.reader import Cut
from heimdallr_ray.listener.wire.serving import ConnectionServer
from heimdallr_ray.listener.wire.tls import server_context

logger = logging.getLogger(__name__)

SEND_EVERY_S = 0.05
"""Accepted objects are told together; nobody waits for it."""
MAX_WAITING = 50_000
"""Accepted objects that wait to be told. More are found in the spool by the listener itself."""
UNTOLD_S = 10.0
"""From an answer to its report: the time of a digest."""
LATE = "accepted too late"
"""Why an association ended whose request the listener answered when its peer had been given up."""


class RemoteHost:
    """The listener in another process, as associations see it."""

    def __init__(
        self, channel: Channel, spool: Spool, max_object_bytes: int, *, commitment: bool, answer_s: float
    ) -> None:
        """`answer_s`: how long a question waits for its answer."""
        self.clock: Clock = SystemClock()
        self.spool = spool
        self.max_object_bytes = max_object_bytes
        self.commitment = commitment
        self._channel = channel
        self._answer_s = answer_s
        self._changed = threading.Condition()
        self._waiting: list[Message | list[Stored]] = []
        self._stored: list[Stored] = []
        self._synced: list[float] = []
        self._urgent = self._overflowed = self._sending = False
        self._numbers = itertools.count(1)
        self._answers: dict[int, Message | None] = {}
        spool.on_durable = self._synced_in
        threading.Thread(target=self._send, name="outbox", daemon=True).start()

    # Questions -------------------------------------------------------------------------------------------------------

    def request(self, called_ae: str, calling_ae: str, address: str, implementation: str) -> OpenAssociation | Refusal:
        """The association is open from now on, or why it is refused."""
        answer = self._call(
            {
                "t": "request",
                "called_ae": called_ae,
                "calling_ae": calling_ae,
                "address": address,
                "implementation": implementation,
            }
        )
        if answer is None:
            raise Cut("listener_busy")
        return Refusal(*answer["refusal"]) if "refusal" in answer else decode_opened(answer["opened"])

    def ask(self, opened: OpenAssociation, dataset: bytes, transfer_syntax: str, action: Action) -> int:
        """The status of an N-ACTION response."""
        answer = self._call(
            {
                "t": "ask",
                "association": opened.id,
                "dataset": base64.b64encode(dataset).decode("ascii"),
                "transfer_syntax": transfer_syntax,
                "action": [action.sop_class_uid, action.sop_instance_uid, action.action_type],
            }
        )
        return int(ActionStatus.PROCESSING_FAILURE if answer is None else answer["status"])

    def _call(self, message: Message) -> Message | None:
        number = next(self._numbers)
        with self._changed:
            self._answers[number] = None
            self._tell({**message, "id": number})
            self._changed.wait_for(lambda: self._answers[number] is not None, self._answer_s)
            return self._answers.pop(number)

    def answered(self, message: Message) -> None:
        """The listener has answered a question; an association that nobody waits for any more is ended again."""
        with self._changed:
            if message["id"] in self._answers:
                self._answers[message["id"]] = message
                self._changed.notify_all()
            elif "opened" in message:
                # It counts as open, and its connection has gone: nobody else would end it.
                association = message["opened"]["id"]
                logger.warning("association.answered_late", extra={"association": association})
                self._tell({"t": "close", "association": association, "how": How.ABORTED.value, "reason": LATE})

    # Reports ---------------------------------------------------------------------------------------------------------

    def reject(self, refusal: Refusal, called_ae: str, calling_ae: str, address: str) -> None:
        """The association is refused for a reason of the protocol."""
        fields = [refusal.reason, refusal.result, refusal.source, refusal.diagnostic]
        self.tell({"t": "reject", "refusal": fields, "names": [called_ae, calling_ae, address]})

    def close(self, opened: OpenAssociation, how: How, reason: str) -> None:
        """The association has ended."""
        self.spool.end_intake(opened.id)
        self.tell({"t": "close", "association": opened.id, "how": how.value, "reason": reason})

    def cut(self, reason: str, address: str, opened: OpenAssociation | None) -> None:
        """The connection ends because its peer broke a bound."""
        self.tell({"t": "cut", "reason": reason, "address": address, "association": opened.id if opened else None})

    def refuse_connection(self, reason: str, address: str) -> None:
        """The connection ends before anything was asked."""
        self.tell({"t": "refuse", "reason": reason, "address": address})

    def count_refusal(self, reason: str) -> None:
        """Something else was refused."""
        self.tell({"t": "count", "reason": reason})

    def echoed(self) -> None:
        """A C-ECHO was answered."""
        self.tell({"t": "echo"})

    def store_refused(self, opened: OpenAssociation, error: HeimdallrError) -> int:
        """The status that the sender of a refused object hears."""
        status = error.dimse_status
        self.tell({"t": "store_refused", "association": opened.id, "fields": [error.code, error.detail, status]})
        return status

    def stored(self, opened: OpenAssociation, accepted: Accepted, seconds: float) -> None:
        """The object is stored, and its sender has heard Success."""
        with self._changed:
            if len(self._stored) < MAX_WAITING:
                self._stored.append((opened.id, accepted, seconds))
            elif not self._overflowed:
                self._overflowed = True
                self._tell({"t": "overflowed"})
            if len(self._stored) == 1:
                self._changed.notify_all()

    def look_again(self) -> None:
        """An object is stored of which the listener cannot be told: it looks for it itself."""
        self.tell({"t": "overflowed"})

    def gone(self, address: str) -> None:
        """A connection has ended."""
        self.tell({"t": "gone", "address": address})

    def _synced_in(self, seconds: float) -> None:
        with self._changed:
            self._synced.append(round(seconds, 6))

    def tell(self, message: Message) -> None:
        """The listener hears of it soon, behind all that was accepted before."""
        with self._changed:
            self._tell(message)

    def _tell(self, message: Message) -> None:
        if self._stored:
            self._waiting.append(self._stored)
            self._stored = []
        self._waiting.append(message)
        self._urgent = True
        self._changed.notify_all()

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._urgent or self._stored, 1.0)
                if not self._urgent:
                    self._changed.wait_for(lambda: self._urgent, SEND_EVERY_S)
                waiting, self._waiting = self._waiting, []
                if self._stored:
                    waiting.append(self._stored)
                if self._synced:
                    waiting.append({"t": "synced", "seconds": self._synced})
                self._stored, self._synced, self._urgent = [], [], False
                self._overflowed, self._sending = False, bool(waiting)
            try:
                if waiting:
                    parts = (encode_stored(one) if isinstance(one, list) else [one] for one in waiting)
                    self._channel.send([message for part in parts for message in part])
            except OSError:
                leave()
            except Exception:
                # What it was to tell is in the spool: the listener finds it when this process has ended.
                logger.exception("receiving_process.broken")
                leave()
            with self._changed:
                self._sending = False
                self._changed.notify_all()

    def told_all(self, timeout_s: float) -> bool:
        """True once the listener has been sent all that was told before; False where that took longer."""
        with self._changed:
            self._urgent = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not (self._sending or self._waiting or self._stored), timeout_s)


def leave() -> None:
    """The process ends at once: nobody is there for whom it could go on."""
    os._exit(0)


def serve(channel: Channel, config: Message) -> None:
    """Connections are served until the listener says stop, or goes."""
    spool = Spool(
        Path(config["spool"]),
        marks=Watermarks(*config["marks"]),
        max_object_bytes=config["max_object_bytes"],
        durable=config["durable"],
        receiving=True,
    )
    host = RemoteHost(
        channel,
        spool,
        config["max_object_bytes"],
        commitment=config["commitment"],
        answer_s=config["answer_s"],
    )
    files = config["tls"]
    context = server_context(*map(Path, files)) if files else None
    server = ConnectionServer(host, context, host.gone)
    keep_for_good()
    host.tell({"t": "ready", "pid": os.getpid()})
    handlers: dict[str, Callable[[Message], None]] = {
        "serve": lambda message: _serve_one(server, host, channel, message["address"]),
        "answer": host.answered,
        "barrier": lambda message: _pass(server, host, message),
    }
    for message in channel.messages():
        if message["t"] == "stop":
            _stop(server, host, message["grace_s"])
        else:
            handlers[message["t"]](message)
    leave()


def _serve_one(server: ConnectionServer, host: RemoteHost, channel: Channel, address: str) -> None:
    fd = channel.take_fd()
    if fd is None:
        # The kernel had no descriptor left for it; the peer sees a closed connection and may come again.
        host.refuse_connection("no_descriptor", address)
        host.gone(address)
    else:
        server.serve(socket.socket(fileno=fd), address)


def _pass(server: ConnectionServer, host: RemoteHost, barrier: Message) -> None:
    """The barrier goes back behind all that was answered before. Where that hangs it does not: the listener acts."""

    def wait() -> None:
        if server.untold.wait(UNTOLD_S):
            host.tell({"t": "barrier", "id": barrier["id"]})
        else:
            logger.error("barrier.held_up")

    if server.untold.wait(0.0):
        host.tell({"t": "barrier", "id": barrier["id"]})
    else:
        # New connections and answers to questions do not wait for it.
        threading.Thread(target=wait, name="barrier", daemon=True).start()


def _stop(server: ConnectionServer, host: RemoteHost, grace_s: float) -> None:
    def end() -> None:
        server.stop(grace_s)
        server.untold.wait(UNTOLD_S)
        host.told_all(UNTOLD_S)
        leave()

    # Answers to associations that still end must go on being read.
    threading.Thread(target=end, name="stop", daemon=True).start()


def _log_into(told: Message | None) -> None:
    """The file of the listener, with which no line is mixed; where it has none, as it does, stderr."""
    if told is None:
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    else:
        logs.configure_at(logs.LogPlace(**told))


def main() -> None:
    """Read the configuration from the channel, then serve."""
    channel = Channel(socket.socket(fileno=int(sys.argv[1])))
    config = next(channel.messages(), None)
    if config is None:
        leave()
        return
    _log_into(config["log"])
    try:
        serve(channel, config)
    except HeimdallrError as error:
        channel.send([{"t": "failed", "code": error.code, "detail": error.detail}])
        leave()


if __name__ == "__main__":
    main()
