"""The last known end of the audit chain, in a small file of the data folder: beside the database, and not in it.

Somebody who puts the database back to an earlier state, rows and head together, leaves a chain that verifies. The file
knows better, as long as the same hand does not reach it; a copy on another machine (a line of the log, a printout of
`heimdallr audit head`) knows better for good.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

from heimdallr_ray.catalog.database import Database
from heimdallr_ray.errors import BadIdentifier
from heimdallr_ray.security.audit_check import Anchor
from heimdallr_ray.security.audit_entries import head, mac_at

logger = logging.getLogger(__name__)

NAME: Final = "audit.anchor"
_READ_LIMIT: Final = 256


def read_anchor(data_dir: Path) -> Anchor | None:
    """The anchor that is kept in the data folder; None where there is none.

    Raises:
        BadIdentifier: the file holds something else.
    """
    try:
        with (data_dir / NAME).open("r", encoding="ascii", errors="replace") as stream:
            said = stream.read(_READ_LIMIT)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BadIdentifier(f"{NAME} cannot be read: {error.strerror}") from error
    return Anchor.parse(said)


def keep_anchor(database: Database, data_dir: Path) -> Anchor | None:
    """The file knows the present end of the chain, where that is further than what it knew; the log is told too.

    A chain that does not hold what the file knows was put back or written anew: the file stays as the witness of that.

    Returns:
        What was written; None where nothing was.

    Raises:
        Retryable: the database does not answer now.
        BadIdentifier: the file holds something else, and is left as it is.
        OSError: it cannot be written.
    """
    known = read_anchor(data_dir)
    with database.read() as session:
        found = head(session)
        held = None if known is None else mac_at(session, known.entries)
    if known is not None and held != known.mac:
        logger.error("audit.anchor_does_not_fit", extra={"entries": known.entries})
        return None
    if found is None or (known is not None and found.entries <= known.entries):
        return None
    anchor = Anchor(found.entries, found.mac)
    draft = data_dir / f"{NAME}.{os.getpid()}.part"
    fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "w", encoding="ascii") as stream:
        stream.write(f"{anchor}\n")
        stream.flush()
        os.fsync(stream.fileno())
    draft.replace(data_dir / NAME)
    logger.info("audit.anchor", extra={"entries": anchor.entries, "mac": anchor.mac})
    return anchor
