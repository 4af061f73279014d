"""pynetdicom's habits that are mended for both ends of an association: its socket, and what it says of strangers."""

from __future__ import annotations

import logging
import socket
from contextlib import suppress
from typing import Any, cast

from pydicom import config as pydicom_config
from pynetdicom.transport import AddressInformation, AssociationSocket


class PromptSocket(AssociationSocket):
    """Sends small messages at once and always closes its descriptor."""

    def _create_socket(self, address: AddressInformation) -> socket.socket:
        created = super()._create_socket(address)
        prompt(created)
        return created

    def _shutdown_socket(self) -> None:
        # The parent gives up before close() where the peer has already gone, and the descriptor stays open.
        connection = self.socket
        if connection is None:
            return
        with suppress(OSError):
            connection.shutdown(socket.SHUT_RDWR)
        connection.close()


def prompt(connection: socket.socket) -> None:
    """Small messages leave at once: without this, delayed acknowledgements cost 40 ms per image."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def quote_nobody() -> None:
    """Nothing that a stranger wrote is quoted or kept by pynetdicom and pydicom, in all of this process."""
    # A traceback with a stranger's bytes for each malformed PDU; the refusal has its own line.
    logging.getLogger("pynetdicom").setLevel(logging.CRITICAL)
    # Python keeps the text of every warning, and pydicom warns of each malformed UID that a stranger sends.
    cast(Any, pydicom_config.settings).reading_validation_mode = pydicom_config.IGNORE
