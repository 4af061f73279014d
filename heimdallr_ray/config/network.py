"""Addresses and peers as settings name them."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def is_loopback(host: str) -> bool:
    """True where `host` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def let_everybody_in(networks: Iterable[IPNetwork]) -> bool:
    """True where `networks` together hold all of IPv4 or all of IPv6."""
    found = list(networks)
    v4 = [network for network in found if isinstance(network, ipaddress.IPv4Network)]
    v6 = [network for network in found if isinstance(network, ipaddress.IPv6Network)]
    whole = [*ipaddress.collapse_addresses(v4), *ipaddress.collapse_addresses(v6)]
    return any(network.prefixlen == 0 for network in whole)


@dataclass(frozen=True)
class Peer:
    """Where an application entity listens."""

    ae_title: str
    host: str
    port: int
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Peer:
        """The peer of `AE=host:port` or `AE=tls:host:port`; an IPv6 address stands in brackets.

        Raises:
            ValueError: not of this form, no AE title (PS3.5 table 6.2-1), or no port.
        """
        title, _, place = text.rpartition("=")
        place = place.strip()
        tls = place.startswith("tls:") and ":" in place[4:]
        host, _, port = place.removeprefix("tls:" if tls else "").rpartition(":")
        title, host = title.strip(), host.strip()
        if host.startswith("[") and host.endswith("]"):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif ":" in host:
            raise ValueError("an IPv6 address stands in brackets: AE=[::1]:104")
        if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
            raise ValueError("is not AE=host:port with an AE title of 1 to 16 characters")
        if not re.fullmatch(r"[A-Za-z0-9._:-]{1,253}", host):
            raise ValueError("is not AE=host:port with a host name or an address")
        if not re.fullmatch(r"[0-9]{1,5}", port.strip()) or not 1 <= int(port) <= 65535:
            raise ValueError("is not AE=host:port with a port from 1 to 65535")
        return cls(title, host, int(port), tls)

    def __str__(self) -> str:
        """As it stands in the settings."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.ae_title}={'tls:' if self.tls else ''}{host}:{self.port}"
