"""The listener for associations that are served in its own process."""

from __future__ import annotations

from heimdallr_ray.listener.action import Action, ActionStatus
from heimdallr_ray.listener.association import OpenAssociation
from heimdallr_ray.listener.commitment import CommitmentDesk
from heimdallr_ray.listener.registry import Registry


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
        self.look_again = registry.receiver.look_again
        self.store_refused = registry.store_refused

    def echoed(self) -> None:
        """A C-ECHO was answered."""
        self._registry.tally.add("echo")

    def ask(self, opened: OpenAssociation, dataset: bytes, transfer_syntax: str, action: Action) -> int:
        """The status of an N-ACTION response."""
        if self._desk is None:
            return ActionStatus.PROCESSING_FAILURE
        return self._registry.ask(self._desk, opened, dataset, transfer_syntax, action)
