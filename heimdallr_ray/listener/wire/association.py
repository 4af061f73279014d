"""One association, from its request to its end: commands are parsed, data sets of C-STORE go to the spool as they come.

Source: PS3.7 sections 9.1.1 (C-STORE), 9.1.5 (C-ECHO), 10.1.4 (N-ACTION); PS3.8 sections 7 and 9.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable
from contextlib import suppress

from heimdallr_ray.catalog.states import How
from heimdallr_ray.errors import HeimdallrError, NotDicom, TooLarge
from heimdallr_ray.listener.action import MAX_REQUEST_BYTES, Action
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.contexts import STORAGE_COMMITMENT_PUSH, VERIFICATION, is_storage
from heimdallr_ray.listener.gate import MAX_PDU_BYTES, Refusal
from heimdallr_ray.listener.reception import Reception
from heimdallr_ray.listener.wire import command, negotiate, pdu
from heimdallr_ray.listener.wire.command import Command
from heimdallr_ray.listener.wire.host import Host
from heimdallr_ray.listener.wire.negotiate import Context
from heimdallr_ray.listener.wire.reader import Closed, Cut, PduReader
from heimdallr_ray.listener.wire.stream import Stream
from heimdallr_ray.listener.wire.turn import Turn, Untold
from heimdallr_ray.listener.writer import SpoolWriter

logger = logging.getLogger(__name__)

SUCCESS = 0x0000
SOP_CLASS_NOT_SUPPORTED = 0x0122
NO_SUCH_SOP_CLASS = 0x0118
MAX_COMMAND_BYTES = 16 << 10
LOOSE_FRAGMENTS = 10_000
"""Of one message, however little is in them; after so many they have to hold LEAST_FRAGMENT_BYTES on average."""
LEAST_FRAGMENT_BYTES = 64
"""No peer has a reason to send less at a time, and each costs about ten microseconds."""

_UNSUPPORTED_CONTEXT_NAME = Refusal("application_context", 0x01, 0x01, 0x02)
_UNSUPPORTED_VERSION = Refusal("protocol_version", 0x01, 0x02, 0x02)


class _Incoming:
    """The data set of one request: on its way into the spool, into memory, or nowhere because it was refused."""

    def __init__(self, request: Command, context_id: int, context: Context, began_s: float) -> None:
        self.request = request
        self.context_id = context_id
        self.context = context
        self.began_s = began_s
        self.writer: SpoolWriter | None = None
        self.reception: Reception | None = None
        self.error: HeimdallrError | None = None
        self.memory: bytearray | None = None
        self.size = 0


class WireAssociation:
    """Serves one connection in the calling thread."""

    def __init__(
        self,
        connection: socket.socket,
        address: str,
        host: Host,
        spent_s: float,
        stopping: Callable[[], bool],
        turn: Turn,
        untold: Untold,
    ) -> None:
        """An association that was not asked for yet.

        Args:
            connection: to the peer; stays open.
            address: of the peer.
            host: the listener.
            spent_s: of the time for its request, on a TLS handshake.
            stopping: whether it shall end.
            turn: held by whoever calls `run`.
            untold: what was answered and not told yet.
        """
        self._stream = Stream(connection, turn)
        self._turn = turn
        self._untold = untold
        self._address = address
        self._host = host
        self._spool = host.spool
        self._clock = host.clock
        self._reader = PduReader(self._stream, spent_s, stopping, self._let_go)
        self._contexts: dict[int, Context] = {}
        self._opened: OpenAssociation | None = None
        self._command = bytearray()
        self._command_context = 0
        self._incoming: _Incoming | None = None
        self._fragments = self._fragment_bytes = 0

    def run(self) -> None:
        """The association has ended, in whichever way; nothing unfinished is left of it. The caller holds the turn."""
        how, reason = How.ABORTED, "connection closed"
        try:
            if self._negotiate():
                how, reason = self._serve()
        except Cut as cut:
            reason = cut.reason
            self._host.cut(reason, self._address, self._opened)
            self._say(pdu.abort(cut.code))
        except Closed:
            if self._opened is None:
                self._host.count_refusal("refused.no_request")
                logger.info("connection.closed", extra={"reason": "no_request", "address": self._address})
        finally:
            self._drop()
            if self._opened is not None:
                self._host.close(self._opened, how, "" if how is How.RELEASED else reason)

    # Association -----------------------------------------------------------------------------------------------------

    def _negotiate(self) -> bool:
        _, start, end = self._reader.next()
        try:
            request = negotiate.read_request(bytes(self._reader.view[start - pdu.HEADER_BYTES : end]))
        except TooLarge as error:
            raise Cut("request_too_large", pdu.INVALID_PARAMETER) from error
        except NotDicom as error:
            raise Cut("malformed_request", pdu.INVALID_PARAMETER) from error
        if request.application_context != negotiate.APPLICATION_CONTEXT:
            return self._reject(_UNSUPPORTED_CONTEXT_NAME, request)
        if not request.protocol_version & 1:
            return self._reject(_UNSUPPORTED_VERSION, request)
        with self._turn.waiting():
            opened = self._host.request(request.called_ae, request.calling_ae, self._address, request.implementation)
        if isinstance(opened, Refusal):
            self._say(pdu.reject(opened.result, opened.source, opened.diagnostic))
            return False
        self._opened = opened
        answer, self._contexts = negotiate.answer(request, MAX_PDU_BYTES, commitment=self._host.commitment)
        self._send(answer)
        self._reader.accepted()
        return True

    def _reject(self, refusal: Refusal, request: negotiate.Request) -> bool:
        self._host.reject(refusal, request.called_ae, request.calling_ae, self._address)
        self._say(pdu.reject(refusal.result, refusal.source, refusal.diagnostic))
        return False

    def _serve(self) -> tuple[How, str]:
        reader = self._reader
        while True:
            kind, start, end = reader.next()
            if kind == pdu.P_DATA:
                if start == end:
                    self._count_fragment(0)
                try:
                    for context_id, control, fragment in pdu.values(reader.view, start, end):
                        self._fragment(context_id, control, fragment)
                except NotDicom as error:
                    raise Cut("malformed_message", pdu.INVALID_PARAMETER) from error
            elif kind == pdu.RELEASE_RQ:
                self._say(pdu.RELEASE_RP)
                if self._incoming is not None:
                    return How.ABORTED, "released inside a message"
                return How.RELEASED, ""
            else:
                return How.ABORTED, "aborted by the peer"

    def _count_fragment(self, size: int) -> None:
        """Nothing happens while the peer says something: an endless row of empty words is not slow.

        Raises:
            Cut: it does not.
        """
        self._fragments += 1
        self._fragment_bytes += size
        if self._fragments > LOOSE_FRAGMENTS + self._fragment_bytes // LEAST_FRAGMENT_BYTES:
            raise Cut("tiny_fragments", pdu.INVALID_PARAMETER)

    def _message_ended(self) -> None:
        self._reader.message_ended()
        self._fragments = self._fragment_bytes = 0

    def _fragment(self, context_id: int, control: int, fragment: memoryview) -> None:
        self._count_fragment(len(fragment))
        if control & 1:
            self._command_fragment(context_id, control, fragment)
            return
        incoming = self._incoming
        if incoming is None or incoming.context_id != context_id:
            raise Cut("data_without_command", pdu.UNEXPECTED_PDU)
        self._data_fragment(incoming, fragment)
        if control & 2:
            self._message_ended()
            self._incoming = None
            try:
                self._finish(incoming)
            finally:
                self._release(incoming)

    def _command_fragment(self, context_id: int, control: int, fragment: memoryview) -> None:
        if self._incoming is not None or (self._command and self._command_context != context_id):
            raise Cut("unexpected_command", pdu.UNEXPECTED_PDU)
        if len(self._command) + len(fragment) > MAX_COMMAND_BYTES:
            raise Cut("command_too_long", pdu.INVALID_PARAMETER)
        self._reader.message_began()
        self._command_context = context_id
        self._command += fragment
        if control & 2:
            content = bytes(self._command)
            self._command.clear()
            self._requested(command.parse(content), context_id)

    # Messages --------------------------------------------------------------------------------------------------------

    def _requested(self, request: Command, context_id: int) -> None:
        context = self._contexts.get(context_id)
        if context is None:
            raise Cut("context_not_accepted", pdu.INVALID_PARAMETER)
        if request.has_data_set:
            # Known before anything can go wrong: what was begun is ended with the association.
            self._incoming = _Incoming(request, context_id, context, self._clock.monotonic())
            self._begin(self._incoming)
            return
        self._message_ended()
        if request.field == command.C_ECHO and context.abstract_syntax == VERIFICATION:
            self._host.echoed()
            self._answer(request, context_id, SUCCESS)
        elif request.field == command.C_CANCEL or request.is_response:
            return
        elif request.field == command.N_ACTION and context.abstract_syntax == STORAGE_COMMITMENT_PUSH:
            assert self._opened is not None  # noqa: S101
            incoming = _Incoming(request, context_id, context, 0.0)
            self._answer(request, context_id, self._ask(incoming, b"", self._opened))
        elif request.field == command.C_STORE and is_storage(context.abstract_syntax):
            self._refuse(_Incoming(request, context_id, context, 0.0), NotDicom("the request has no data set"))
        else:
            self._unrecognized(request, context_id)

    def _begin(self, incoming: _Incoming) -> None:
        """It is known where the data set of this request goes."""
        assert self._opened is not None  # noqa: S101
        request, context = incoming.request, incoming.context
        if request.field == command.C_STORE and is_storage(context.abstract_syntax):
            try:
                arrival = self._opened.arrival(
                    self._clock.now(),
                    context.transfer_syntax,
                    command.text(request.class_uid),
                    command.text(request.instance_uid),
                )
                with self._turn.waiting():
                    incoming.writer = self._spool.begin(arrival)
                incoming.writer.holds = self._reader.held = True
                incoming.reception = Reception(incoming.writer, arrival)
            except HeimdallrError as error:
                incoming.error = error
        elif request.field == command.N_ACTION and context.abstract_syntax == STORAGE_COMMITMENT_PUSH:
            incoming.memory = bytearray()

    def _data_fragment(self, incoming: _Incoming, fragment: memoryview) -> None:
        incoming.size += len(fragment)
        if incoming.memory is not None:
            if incoming.size > MAX_REQUEST_BYTES:
                raise Cut("action_too_long", pdu.INVALID_PARAMETER)
            incoming.memory += fragment
            return
        if incoming.size > self._host.max_object_bytes:
            raise Cut("object_too_large", pdu.NOT_SPECIFIED)
        if incoming.reception is not None and incoming.error is None:
            try:
                incoming.reception.write(fragment)
                if incoming.writer is not None and incoming.writer.due:
                    with self._turn.waiting():
                        incoming.writer.flush()
            except HeimdallrError as error:
                # What still comes of it is read and forgotten: the association stays usable.
                incoming.error = error
                self._release(incoming)

    def _finish(self, incoming: _Incoming) -> None:
        opened = self._opened
        assert opened is not None  # noqa: S101
        request = incoming.request
        if incoming.reception is not None or incoming.error is not None:
            try:
                if incoming.error is not None or incoming.reception is None:
                    raise incoming.error or NotDicom("no data set")
                known = incoming.reception.identify()
                with self._turn.waiting():
                    if not known:
                        incoming.reception.read_back()
                    self._store(opened, incoming.request, incoming.context_id, incoming.reception, incoming.began_s)
            except HeimdallrError as error:
                self._refuse(incoming, error)
        elif incoming.memory is not None:
            self._answer(request, incoming.context_id, self._ask(incoming, bytes(incoming.memory), opened))
        elif request.is_response:
            return
        elif request.field in (command.C_STORE, command.N_ACTION):
            self._host.count_refusal("store.sop_class")
            logger.warning(
                "request.refused",
                extra={
                    "association": opened.id,
                    "reason": "SOP class not supported",
                    "field": f"0x{request.field:04X}",
                },
            )
            status = SOP_CLASS_NOT_SUPPORTED if request.field == command.C_STORE else NO_SUCH_SOP_CLASS
            self._answer(request, incoming.context_id, status)
        else:
            self._unrecognized(request, incoming.context_id)

    def _store(
        self, opened: OpenAssociation, request: Command, context_id: int, reception: Reception, began_s: float
    ) -> None:
        """The object is stored, its sender has heard Success, and the listener knows of it."""
        reception.store()
        seconds = self._clock.monotonic() - began_s
        number = self._untold.begin()
        try:
            self._answer(request, context_id, SUCCESS)
        finally:
            try:
                # Also where its sender has gone meanwhile. Only now is there time for its digest.
                self._host.stored(opened, reception.accepted(), seconds)
            except HeimdallrError as error:
                # Its file is ready. The listener hears it before it hears that the association has ended.
                self._host.look_again()
                logger.warning("store.not_told", extra={"association": opened.id, "code": error.code})
            finally:
                self._untold.end(number)

    def _let_go(self) -> None:
        """What was received may be overwritten."""
        incoming = self._incoming
        if incoming is not None and incoming.writer is not None and incoming.error is None:
            try:
                with self._turn.waiting():
                    incoming.writer.let_go()
            except HeimdallrError as error:
                incoming.error = error
                self._release(incoming)

    def _ask(self, incoming: _Incoming, dataset: bytes, opened: OpenAssociation) -> int:
        request = incoming.request
        action = Action(command.text(request.class_uid), command.text(request.instance_uid), request.action_type)
        with self._turn.waiting():
            return self._host.ask(opened, dataset, incoming.context.transfer_syntax, action)

    def _refuse(self, incoming: _Incoming, error: HeimdallrError) -> None:
        assert self._opened is not None  # noqa: S101
        status = self._host.store_refused(self._opened, error)
        self._answer(incoming.request, incoming.context_id, status, error.code)

    def _unrecognized(self, request: Command, context_id: int) -> None:
        self._host.count_refusal("request.unrecognized")
        logger.warning(
            "request.refused",
            extra={
                "association": self._opened.id if self._opened else None,
                "reason": "operation not recognised",
                "field": f"0x{request.field:04X}",
            },
        )
        self._answer(request, context_id, command.UNRECOGNIZED_OPERATION)

    # Edges -----------------------------------------------------------------------------------------------------------

    def _answer(self, request: Command, context_id: int, status: int, comment: str = "") -> None:
        self._send(pdu.command_pdu(context_id, command.response(request, status, comment)))

    def _send(self, content: bytes) -> None:
        try:
            self._stream.send(content)
        except TimeoutError as error:
            raise Cut("peer_does_not_read") from error
        except OSError as error:
            raise Closed from error

    def _say(self, content: bytes) -> None:
        """As `_send`, where it does not matter any more whether the peer hears it."""
        with suppress(OSError):
            self._stream.send(content)

    def _release(self, incoming: _Incoming) -> None:
        writer, incoming.writer = incoming.writer, None
        if writer is not None:
            self._reader.held = False
            self._spool.end(writer)

    def _drop(self) -> None:
        incoming, self._incoming = self._incoming, None
        if incoming is not None:
            self._release(incoming)
