"""Who may connect, and the bounds that every connection keeps, whichever backend serves it."""

from __future__ import annotations

import ipaddress
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # A receiving process has the bounds of this module and no settings.
    from heimdallr_ray.config import Settings

MAX_PDU_BYTES = 131_072
"""What we announce as Maximum Length Received (PS3.8 D.1); dcmtk never sends more."""
PRE_ACCEPT_PDU_BYTES = 1 << 20
"""128 presentation contexts with all transfer syntaxes are under 300 kB."""
MAX_COMMAND_BYTES = 1 << 20
ASSOCIATE_TIMEOUT_S = 5.0
"""From the connection to the complete A-ASSOCIATE-RQ."""
MESSAGE_GRACE_S = 20.0
MIN_BYTES_PER_S = 4096
"""A message that has begun may take so long, and a second more for each so many bytes that came of it."""
PDU_TIMEOUT_S = MESSAGE_GRACE_S
"""The same for one PDU, where only PDUs are seen."""
NETWORK_TIMEOUT_S = 300.0
"""Silence between two messages; some devices pause for minutes between series."""
MAX_WAITING_MESSAGES = 2
"""Without an asynchronous window (PS3.7 D.3.3.3, never negotiated here) a peer waits for each answer."""
TOO_MANY_CONNECTIONS = "too_many_connections"
PENDING_FACTOR = 2
"""Connections, also those without an association, per association that may be open."""


@dataclass(frozen=True)
class Refusal:
    """Why an association is rejected: A-ASSOCIATE-RJ fields (PS3.8 table 9-21) and a word for the log."""

    reason: str
    result: int
    source: int
    diagnostic: int


@dataclass(frozen=True)
class GateRules:
    """Who may associate, and how much one association may send."""

    ae_title: str
    calling_aes: frozenset[str]
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]
    max_associations: int
    max_object_bytes: int
    max_per_address: int = 1000

    @classmethod
    def of(cls, settings: Settings) -> GateRules:
        """The rules that `settings` ask for."""
        return cls(
            ae_title=settings.ae_title.strip(),
            calling_aes=frozenset(title.strip() for title in settings.allowed_calling_aes),
            networks=tuple(ipaddress.ip_network(text) for text in settings.allowed_addresses),
            max_associations=settings.max_associations,
            max_object_bytes=settings.max_instance_mib << 20,
            max_per_address=settings.max_associations_per_address,
        )

    def admits_address(self, address: str) -> bool:
        """True where `address` lies in an allowed network, or no network is named."""
        if not self.networks:
            return True
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return False
        mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
        return any(candidate in network for network in self.networks for candidate in (parsed, mapped) if candidate)

    def connection_refusal(self, address: str, open_in_all: int, open_from_there: int) -> str:
        """Why a connection from `address` is closed before anything is asked; "" where it may stay."""
        if not self.admits_address(address):
            return "address"
        if open_from_there >= self.max_per_address:
            return "too_many_from_address"
        if open_in_all >= PENDING_FACTOR * self.max_associations:
            return TOO_MANY_CONNECTIONS
        return ""

    def refusal(self, called_ae: str, calling_ae: str, open_associations: int, *, has_room: bool) -> Refusal | None:
        """The reason to reject this association, or None."""
        if called_ae.strip() != self.ae_title:
            return Refusal("called_ae", 0x01, 0x01, 0x07)
        if self.calling_aes and calling_ae.strip() not in self.calling_aes:
            return Refusal("calling_ae", 0x01, 0x01, 0x03)
        if open_associations >= self.max_associations:
            return Refusal("too_many_associations", 0x02, 0x03, 0x02)
        if not has_room:
            return Refusal("storage_full", 0x02, 0x03, 0x01)
        return None


class Connections:
    """How many connections are open, in all and by address. Safe for several threads."""

    def __init__(self, rules: GateRules) -> None:
        self._rules = rules
        self._lock = threading.Lock()
        self._fewer = threading.Condition(self._lock)
        self._by_address: Counter[str] = Counter()

    def admit(self, address: str) -> str:
        """Why a connection from `address` is closed at once; "" where it is counted from now on."""
        with self._lock:
            total = self._by_address.total()
            reason = self._rules.connection_refusal(address, total, self._by_address[address])
            if reason:
                return reason
            self._by_address[address] += 1
        return ""

    def gone(self, address: str) -> None:
        """A connection that was admitted has ended."""
        with self._lock:
            self._by_address[address] -= 1
            if self._by_address[address] <= 0:
                del self._by_address[address]
            self._fewer.notify_all()

    def wait_for_fewer(self, than: int, timeout_s: float) -> bool:
        """True once fewer than so many are open; False where that took too long."""
        with self._fewer:
            return self._fewer.wait_for(lambda: self._by_address.total() < than, timeout_s)

    @property
    def most(self) -> int:
        """How many may be open."""
        return PENDING_FACTOR * self._rules.max_associations

    @property
    def total(self) -> int:
        """Connections that are open."""
        with self._lock:
            return self._by_address.total()
