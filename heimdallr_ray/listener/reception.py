"""One object while it comes in, whichever door it comes by: written as it comes, identified, durable."""

from __future__ import annotations

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.identity import Identified, read_identity, read_quickly
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.listener.arrival import Arrival
from heimdallr_ray.listener.facts import Accepted, Identity, identify, identify_instance
from heimdallr_ray.listener.room import storage_error
from heimdallr_ray.listener.writer import HEAD_BYTES, SpoolWriter


class Reception:
    """One object while it comes in: `write` its data set bytes, then `finish`. Made by `Receiver.receiving`."""

    def __init__(self, writer: SpoolWriter, arrival: Arrival) -> None:
        self._writer = writer
        self._arrival = arrival
        self._found: Identified | None = None
        self._looked = False
        self._identity: Identity | None = None

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append data set bytes exactly as given.

        Raises:
            TooLarge, StorageFull, StorageFailed: as `SpoolWriter.write`.
        """
        writer = self._writer
        writer.write(chunk)
        if not self._looked and writer.file_size >= HEAD_BYTES:
            # While the rest is still on its way, and not when the sender waits for its answer.
            self._looked = True
            self._found = read_quickly(writer.head, writer.dataset_offset, self._arrival.transfer_syntax_uid)

    def identify(self) -> bool:
        """True where what the object is could be read from the bytes in memory; a very long header is to be read back.

        Raises:
            NotDicom, TruncatedObject, TooLarge: its header cannot be read.
        """
        writer, arrival = self._writer, self._arrival
        size, found = writer.file_size, self._found
        if found is None or size > limits.MAX_OBJECT_BYTES:
            found = read_identity(writer.head, size, writer.dataset_offset, arrival.transfer_syntax_uid)
        if found is None:
            return False
        self._identity = identify(found, arrival, lambda: writer.sha256)
        return True

    def read_back(self) -> None:
        """What the object is has been read from its file.

        Raises:
            NotDicom, TruncatedObject, TooLarge: its header cannot be read.
            StorageFull, StorageFailed: the file cannot be written or read back.
        """
        writer, arrival = self._writer, self._arrival
        try:
            writer.let_go()
            self._identity = identify_instance(read_header(writer.path), arrival, writer.sha256)
        except OSError as error:
            raise storage_error(error) from error

    def store(self) -> None:
        """The object is identified, and as durable as was asked for; its sender may hear Success.

        Raises:
            NotDicom, TruncatedObject, TooLarge: its header cannot be read; nothing is kept.
            StorageFull, StorageFailed: it could not be made durable; nothing is kept.
        """
        if self._identity is None and not self.identify():
            self.read_back()
        self._writer.commit()

    def accepted(self) -> Accepted:
        """The object that was stored, with its digest.

        Raises:
            StorageFailed: it cannot be given its name.
        """
        assert self._identity is not None  # noqa: S101
        return Accepted(self._writer.entry(), self._identity, durable=self._writer.durable)

    def finish(self) -> Accepted:
        """As `store` and `accepted`, for a door at which nobody waits for the answer alone.

        Raises:
            As `store` and `accepted`.
        """
        self.store()
        return self.accepted()
