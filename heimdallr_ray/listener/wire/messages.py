"""What a receiving process and the listener tell each other: one JSON object a line over a pair of Unix sockets."""

from __future__ import annotations

import json
import socket
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from heimdallr_ray.catalog.received import SeriesFacts, StudyFacts
from heimdallr_ray.ids import Sha256, Uid
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.facts import Accepted, Identity
from heimdallr_ray.listener.writer import SpoolEntry

Message = dict[str, Any]
MAX_LINE_BYTES = 32 << 20
"""A storage commitment request of the largest size, and room."""
ROWS_PER_MESSAGE = 2000
"""About 1 MB."""
_READ_BYTES = 1 << 16
_MAX_FDS = 16


class Channel:
    """One end of the pair. `send` is safe for several threads; one thread iterates over `messages`."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._sending = threading.Lock()
        self._fds: deque[int] = deque()

    def send(self, messages: Sequence[Message], fd: int | None = None) -> None:
        """The messages are on their way, with a descriptor where one is given.

        Raises:
            OSError: the other end has gone.
        """
        lines = "".join(json.dumps(message, separators=(",", ":")) + "\n" for message in messages).encode()
        with self._sending:
            if fd is None:
                self._connection.sendall(lines)
            else:
                sent = socket.send_fds(self._connection, [lines], [fd])
                self._connection.sendall(lines[sent:])

    def messages(self) -> Iterator[Message]:
        """Each message in turn, until the other end is closed.

        Raises:
            ValueError: a line is no message; the other end is broken.
        """
        pending = bytearray()
        while True:
            try:
                chunk, fds, _, _ = socket.recv_fds(self._connection, _READ_BYTES, _MAX_FDS)
            except OSError:
                return
            self._fds.extend(fds)
            if not chunk:
                return
            pending += chunk
            if len(pending) > MAX_LINE_BYTES:
                raise ValueError("a message is too long")
            if b"\n" not in chunk:
                continue
            *lines, rest = pending.split(b"\n")
            pending = bytearray(rest)
            for line in lines:
                yield cast(Message, json.loads(line))

    def take_fd(self) -> int | None:
        """The descriptor that came with the message that was read last; None where it was lost on the way."""
        return self._fds.popleft() if self._fds else None

    def close(self) -> None:
        """Both directions are shut."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


Stored = tuple[str, Accepted, float]
"""An accepted object, between the id of its association and the seconds that it took."""
Facts = tuple[StudyFacts, SeriesFacts]


def encode_stored(stored: Sequence[Stored]) -> list[Message]:
    """Accepted objects as a few messages.

    What the images of a series have in common is told once.
    """
    return [_encode_part(stored[at : at + ROWS_PER_MESSAGE]) for at in range(0, len(stored), ROWS_PER_MESSAGE)]


def _encode_part(stored: Sequence[Stored]) -> Message:
    # By identity: images of a series share their facts, and to compare them costs more than to tell them.
    places: dict[tuple[int, int], int] = {}
    facts: list[tuple[Message, Message]] = []
    rows: list[list[Any]] = []
    for association_id, accepted, seconds in stored:
        identity = accepted.identity
        key = id(identity.study), id(identity.series)
        place = places.get(key)
        if place is None:
            place = places[key] = len(facts)
            facts.append((_values(identity.study), _values(identity.series)))
        rows.append(_encode_accepted(association_id, accepted, seconds, place))
    return {"t": "stored", "facts": facts, "rows": rows}


def _encode_accepted(association_id: str, accepted: Accepted, seconds: float, facts: int) -> list[Any]:
    entry, identity = accepted.entry, accepted.identity
    arrival = entry.arrival
    return [
        association_id,
        round(seconds, 6),
        entry.name,
        entry.file_name,
        entry.sha256,
        entry.size,
        arrival.received_at.isoformat(),
        arrival.transfer_syntax_uid,
        arrival.sop_class_uid,
        arrival.sop_instance_uid,
        accepted.durable,
        identity.study_uid,
        identity.study_uid_generated,
        identity.series_uid,
        identity.sop_uid,
        identity.sop_class_uid,
        identity.synthetic,
        facts,
    ]


def decode_stored(
    message: Mapping[str, Any], associations: Mapping[str, OpenAssociation], ready: Path
) -> Iterator[tuple[OpenAssociation, Accepted, float]]:
    """The accepted objects in `message`, each with the association by which it came and the seconds that it took.

    Those of an association that is none of `associations` are left out.
    """
    facts: list[Facts] = [(StudyFacts(**study), SeriesFacts(**series)) for study, series in message["facts"]]
    for row in message["rows"]:
        opened = associations.get(row[0])
        if opened is not None:
            yield opened, _decode_accepted(row, opened, ready, facts[int(row[17])]), row[1]


def _decode_accepted(row: Sequence[Any], opened: OpenAssociation, ready: Path, facts: Facts) -> Accepted:
    arrival: Arrival = opened.arrival(datetime.fromisoformat(row[6]), row[7], row[8], row[9])
    entry = SpoolEntry(row[2], ready, row[3], arrival, Sha256(row[4]), row[5])
    identity = Identity(
        study_uid=Uid(row[11]),
        study_uid_generated=row[12],
        series_uid=Uid(row[13]),
        sop_uid=Uid(row[14]),
        sop_class_uid=row[15],
        synthetic=row[16],
        study=facts[0],
        series=facts[1],
    )
    return Accepted(entry, identity, durable=row[10])


def _values(facts: StudyFacts | SeriesFacts) -> dict[str, Any]:
    return {name: value for name, value in vars(facts).items() if value is not None}


def encode_opened(opened: OpenAssociation) -> Message:
    """An association that was just opened, as JSON."""
    return {
        "id": opened.id,
        "calling_ae": opened.calling_ae,
        "called_ae": opened.called_ae,
        "address": opened.address,
        "opened_at": opened.opened_at.isoformat(),
        "opened_s": opened.opened_s,
        "implementation": opened.implementation,
    }


def decode_opened(message: Mapping[str, Any]) -> OpenAssociation:
    """The association in `message`."""
    return OpenAssociation(
        id=message["id"],
        calling_ae=message["calling_ae"],
        called_ae=message["called_ae"],
        address=message["address"],
        opened_at=datetime.fromisoformat(message["opened_at"]),
        opened_s=message["opened_s"],
        implementation=message["implementation"],
    )
