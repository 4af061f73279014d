"""What an association of the wire backend asks of the listener, and the answers of a listener in the same process."""

from __future__ import annotations

from typing import Protocol

from heimdallr_ray.catalog.associations import How
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.commitment import Action, ActionStatus, CommitmentDesk
from heimdallr_ray.listener.facts import Accepted
from heimdallr_ray.listener.gate import Refusal
from heimdallr_ray.listener.registry import Registry
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
        """The object is stored; its sender hears Success after this."""
        ...

    def store_refused(self, opened: OpenAssociation, error: HeimdallrError) -> int:
        """The status that the sender of a refused object hears."""
        ...

    def ask(self, opened: OpenAssociation, dataset: bytes, transfer_syntax: str, action: Action) -> int:
        """The status of an N-ACTION response."""
        ...


class LocalHost:
    """The registry of this process, and its desk for storage commitment."""

    def __init__(self, registry: Registry, desk: CommitmentDesk | None) -> None:
        self._registry = registry
        self._desk = desk
        self.clock = registry.clock
        self.spool = registry.receiver.spool
        self.max_object_bytes = registry.rules.max_object_bytes
        self.commitment = desk is not None
        self.request = registry.request
        self.reject = registry.reject
        self.close = registry.close
        self.cut = registry.cut
        self.refuse_connection = registry.refuse_connection
        self.count_refusal = registry.count_refusal
        self.stored = registry.stored
        self.store_refused = registry.store_refused

    def echoed(self) -> None:
        """A C-ECHO was answered."""
        self._registry.tally.add("echo")

    def ask(self, opened: OpenAssociation, dataset: bytes, transfer_syntax: str, action: Action) -> int:
        """The status of an N-ACTION response."""
        if self._desk is None:
            return ActionStatus.PROCESSING_FAILURE
        return self._registry.ask(self._desk, opened, dataset, transfer_syntax, action)
