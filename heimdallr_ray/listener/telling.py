"""What a process of the intake tells of itself while it runs: its figures every second, and every minute what is due.

Every minute: refusals that were kept back while they came in a flood, and the end of the audit chain for the file
beside the database.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.clock import Clock
from heimdallr_ray.errors import HeimdallrError
from heimdallr_ray.listener.auditing import IntakeAudit, Note
from heimdallr_ray.listener.figures import IntakeFigures
from heimdallr_ray.listener.snapshots import FiguresPublisher, ProcessState
from heimdallr_ray.security.audit_anchor import keep_anchor

logger = logging.getLogger(__name__)


class Telling:
    """The publisher of one process, with its chores."""

    def __init__(
        self,
        kind: str,
        data_dir: Path,
        run_dir: Path,
        database: Database,
        clock: Clock,
        figures: IntakeFigures,
        audit: IntakeAudit,
        note: Callable[[Note], None],
        state: Callable[[], ProcessState],
    ) -> None:
        """Starts nothing.

        Args:
            kind: `snapshots.LISTENER` or `snapshots.HTTP`.
            data_dir: of the settings.
            run_dir: of the settings.
            database: the catalog.
            clock: time.
            figures: the counts of this process.
            audit: what its doors tell the audit chain.
            note: carries a note out in a transaction, now or soon.
            state: what else there is to tell.
        """
        self._data_dir = data_dir
        self._database = database
        self._audit = audit
        self._note = note
        self._publisher = FiguresPublisher(run_dir, kind, figures, clock, state, self.chores)

    def start(self) -> None:
        """It tells from now on."""
        self._publisher.start()

    def stop(self) -> None:
        """Nothing is told any more."""
        self._publisher.stop()

    def chores(self) -> None:
        """Refusals that were kept back are noted, and the file beside the database knows the end of the chain."""
        for note in self._audit.due():
            self._note(note)
        try:
            keep_anchor(self._database, self._data_dir)
        except HeimdallrError as error:
            logger.warning("audit.anchor_not_kept", extra={"code": error.code, "reason": error.detail})
