"""What the HTTP interface needs; built by whoever wraps the app (the Serve ingress, a test)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.config import Settings
from heimdallr_ray.listener.auditing import IntakeAudit
from heimdallr_ray.listener.figures import IntakeFigures
from heimdallr_ray.listener.receive import Receiver
from heimdallr_ray.security.audit import AuditLog
from heimdallr_ray.storage.blobs import BlobStore

READY = "ready"
IDLE = "idle"
"""No replica runs, and none has to: the first request starts one."""
DRAINING = "draining"
WELL = frozenset({READY, IDLE, DRAINING})
"""Words of a part that works as it should."""


@dataclass(frozen=True)
class ApiServices:
    """The parts that routers call.

    Attributes:
        settings: where data lies, limits and tokens.
        database: the catalog.
        blobs: bytes of artifacts.
        receiver: makes uploaded instances durable.
        clock: time.
        static_dir: folder of the built web app; None where it was not built.
        build: identifier of the deployed build, shown by /api/v1/status.
        draining: true while the stack takes nothing new in because it is about to stop; called in a thread.
        components: what is known of the other deployments, name to a word such as `ready`; called in a thread.
    """

    settings: Settings
    database: Database
    blobs: BlobStore
    receiver: Receiver
    clock: Clock
    static_dir: Path | None
    build: str
    components: Callable[[], Mapping[str, str]] | None = None
    draining: Callable[[], bool] = lambda: False

    @cached_property
    def audit(self) -> AuditLog:
        """The audit chain; its key is read, or made, when it is first needed.

        Raises:
            BadSetting: the key file is no key, or others can read it.
            StorageFailed: it can be neither read nor made.
        """
        return AuditLog.of(self.settings)

    @cached_property
    def intake_audit(self) -> IntakeAudit:
        """What the HTTP doors of this process tell the audit chain.

        Raises:
            BadSetting, StorageFailed: as `audit`.
        """
        return IntakeAudit(self.audit, self.clock)

    @cached_property
    def figures(self) -> IntakeFigures:
        """What the HTTP doors of this process have taken in and refused."""
        return IntakeFigures(self.clock)
