"""What an association of the wire backend asks of the listener, whichever process it is in."""

from __future__ import annotations

from typing import Protocol

from heimdallr_ray.catalog.states import How
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener.action import Action
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.facts import Accepted
from heimdallr_ray.listener.gate import Refusal
from heimdallr_ray.listener.spool import Spool


class Host(Protocol):
    """The listener as one association sees it. Safe for several threads."""

    clock: Clock
    spool: Spool
    max_object_bytes: int
    commitment: bool
    """Whether storage commitment is offered."""

    def request(self, called_ae: str, calling_ae: str, address: str, implementation: str) -> OpenAssociation | Refusal:
        """The association is open from now on, or why it is refused."""
        ...

    def reject(self, refusal: Refusal, called_ae: str, calling_ae: str, address: str) -> None:
        """The association is refused for a reason of the protocol."""
        ...

    def close(self, opened: OpenAssociation, how: How, reason: str) -> None:
        """The association has ended."""
        ...

    def cut(self, reason: str, address: str, opened: OpenAssociation | None) -> None:
        """The connection ends because its peer broke a bound."""
        ...

    def refuse_connection(self, reason: str, address: str) -> None:
        """The connection ends before anything was asked."""
        ...

    def count_refusal(self, reason: str) -> None:
        """Something else was refused."""
        ...

    def echoed(self) -> None:
        """A C-ECHO was answered."""
        ...

    def stored(self, opened: OpenAssociation, accepted: Accepted, seconds: float) -> None:
        """The object is stored, and its sender has heard Success."""
        ...

    def look_again(self) -> None:
        """An object is stored of which the listener cannot be told: it looks for it itself."""
        ...

    def store_refused(self, opened: OpenAssociation, error: HeimdallrError) -> int:
        """The status that the sender of a refused object hears."""
        ...

    def ask(self, opened: OpenAssociation, dataset: bytes, transfer_syntax: str, action: Action) -> int:
        """The status of an N-ACTION response."""
        ...
