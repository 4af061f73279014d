"""What receives C-STORE: two backends behind one interface, held to the same contract tests."""

from __future__ import annotations

from typing import Protocol

from heimdallr_ray.listener.registry import Registry


class IntakeBackend(Protocol):
    """A listening port. Its associations are those of `registry`."""

    registry: Registry

    def start(self, host: str, port: int, bind_timeout_s: float = 30.0) -> None:
        """The port answers.

        Raises:
            BadSetting: the address cannot be bound, or is still in use after `bind_timeout_s`; or what TLS needs
                cannot be read.
        """
        ...

    @property
    def port(self) -> int:
        """The port that is listened on; 0 while closed."""
        ...

    @property
    def alive(self) -> bool:
        """True while connections are accepted."""
        ...

    @property
    def trouble(self) -> str:
        """What is wrong, in words, also where it may pass by itself; empty where nothing is."""
        ...

    def sync(self, timeout_s: float) -> bool:
        """True once the registry knows all that was acknowledged before; False where that took longer."""
        ...

    def stop(self, grace_s: float = 5.0) -> None:
        """No new connection is accepted; open associations get `grace_s` to end, then they are cut off."""
        ...
