"""Content-addressed bytes: temporary name, fsync, link or rename, fsync of the directory, name = sha256.

A blob is never changed and never overwritten. What `put` returned, and what `settle` was called for,
survives a power cut.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from heimdallr_ray.clock import Clock, SystemClock
from heimdallr_ray.errors import BlobMissing, HeimdallrError, StorageFailed, StorageFull, TooLarge
from heimdallr_ray.folders import FOLDER_MODE, make_private, sync_folder
from heimdallr_ray.ids import Sha256, new_id

logger = logging.getLogger(__name__)

CHUNK = 1 << 20
"""Bytes read or written at a time."""
STALE_S = 60.0
"""A temporary file is swept when it is older than this and nobody holds it."""
MAX_SWEPT = 100_000
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_HARD_LINK = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
_TEMPORARY = "tmp"


@dataclass(frozen=True)
class BlobRef:
    """A durable blob: its name, and how many bytes it has."""

    sha256: Sha256
    size: int


class BlobStore(Protocol):
    """Durable bytes by digest."""

    def put(self, content: bytes | Iterable[bytes]) -> BlobRef:
        """The bytes are durable under their digest."""
        ...

    def keep(self, files: Sequence[tuple[str | Path, Sha256]]) -> None:
        """The finished files, each with the digest that its writer made of it, are in the store under these digests."""
        ...

    def settle(self, digests: Iterable[Sha256]) -> None:
        """The names that `keep` gave survive a power cut."""
        ...

    def harden(self, digests: Iterable[Sha256]) -> list[Sha256]:
        """The blobs' bytes survive a power cut; returns those that are not in the store."""
        ...

    def open(self, sha256: str) -> BinaryIO:
        """The blob, to be read and closed."""
        ...

    def path(self, sha256: str) -> Path:
        """A local file with the blob's bytes, not to be changed."""
        ...

    def read(self, sha256: str, limit: int) -> bytes:
        """All bytes of a blob that has at most `limit`."""
        ...

    def exists(self, sha256: str) -> bool:
        """True where the blob is in the store."""
        ...

    def locate(self, sha256: str) -> Path:
        """Where the blob is, or would be."""
        ...

    def verify(self, sha256: str) -> BlobRef:
        """The blob's bytes have been read and give its name."""
        ...


class LocalBlobStore:
    """Blobs in a folder: root/ab/abcd....  Safe for several processes of one host at once."""

    def __init__(self, root: Path, clock: Clock | None = None) -> None:
        """The folders exist, durably, and temporary files of dead writers are gone.

        Args:
            root: The store's folder, on a local disk.
            clock: Tells the age of a temporary file.

        Raises:
            StorageFull: no room for the folder.
            StorageFailed: the folder cannot be made or written.
        """
        self.root = root
        self._clock = clock or SystemClock()
        self._temporary = root / _TEMPORARY
        with _storage_errors():
            make_private(root)
            sync_folder(root.parent)
            for folder in (self._temporary, *(root / f"{number:02x}" for number in range(256))):
                folder.mkdir(mode=FOLDER_MODE, exist_ok=True)
            sync_folder(root)
        self.sweep()

    def put(self, content: bytes | Iterable[bytes]) -> BlobRef:
        """The bytes are durable under their digest; nothing is written twice.

        Args:
            content: The bytes, or chunks of them.

        Raises:
            StorageFull: no room; nothing is left behind.
            StorageFailed: the operating system refused; nothing is left behind.
        """
        with self._temporary_file() as (descriptor, temporary):
            digest, size = hashlib.sha256(), 0
            for chunk in _in_chunks(content):
                digest.update(chunk)
                size += len(chunk)
                with _storage_errors():
                    _write_all(descriptor, chunk)
            sha256 = Sha256(digest.hexdigest())
            with _storage_errors():
                os.fchmod(descriptor, 0o440)
                os.fsync(descriptor)
                target = self.locate(sha256)
                # Replacing a blob by its own bytes is harmless, and two writers may race for it.
                temporary.replace(target)
                sync_folder(target.parent)
        return BlobRef(sha256, size)

    def keep(self, files: Sequence[tuple[str | Path, Sha256]]) -> None:
        """Each file's bytes are in the store under the digest that its writer made of them; no byte is read again.

        There is no copy where the file system has hard links, and doing it again changes nothing. The files, which
        nobody may change any more, must stay until `settle` was called for their digests: until then a power cut may
        take the store's name for the bytes.

        Raises:
            BlobMissing: one of the files is not there.
            StorageFull: no room.
            StorageFailed: the operating system refused.
        """
        for path, sha256 in files:
            with _storage_errors(missing=BlobMissing("the file to keep is not there")):
                self._link(path, sha256)

    def settle(self, digests: Iterable[Sha256]) -> None:
        """The names that `keep` gave survive a power cut; each folder is fsynced once.

        Raises:
            StorageFull, StorageFailed: the device refused; nothing is known of the names.
        """
        with _storage_errors():
            for folder in {self.locate(sha256).parent for sha256 in digests}:
                sync_folder(folder)

    def harden(self, digests: Iterable[Sha256]) -> list[Sha256]:
        """Name and bytes of blobs that were kept from files which nobody fsynced survive a power cut from now on.

        Returns:
            Digests that are not in the store.

        Raises:
            StorageFull, StorageFailed: the device refused; nothing is known of the bytes.
        """
        missing: list[Sha256] = []
        found: list[Sha256] = []
        with _storage_errors():
            for sha256 in digests:
                try:
                    descriptor = os.open(self.locate(sha256), os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    missing.append(sha256)
                    continue
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                found.append(sha256)
        self.settle(found)
        return missing

    def open(self, sha256: str) -> BinaryIO:
        """The blob, to be read and closed.

        Raises:
            BlobMissing: not in the store.
            BadIdentifier: not a digest.
        """
        path = self.locate(sha256)
        with _storage_errors(missing=_missing(sha256)):
            return path.open("rb")

    def path(self, sha256: str) -> Path:
        """The blob's own file, not to be changed.

        Raises:
            BlobMissing: not in the store.
            BadIdentifier: not a digest.
        """
        path = self.locate(sha256)
        if not path.is_file():
            raise _missing(sha256)
        return path

    def size(self, sha256: str) -> int:
        """The blob's size in bytes.

        Raises:
            BlobMissing: not in the store.
            BadIdentifier: not a digest.
        """
        path = self.locate(sha256)
        with _storage_errors(missing=_missing(sha256)):
            return path.stat().st_size

    def read(self, sha256: str, limit: int) -> bytes:
        """All bytes of a blob that has at most `limit`.

        Raises:
            TooLarge: it has more.
            BlobMissing: not in the store.
            BadIdentifier: not a digest.
        """
        with self.open(sha256) as file, _storage_errors():
            content = file.read(limit + 1)
        if len(content) > limit:
            raise TooLarge(f"the blob has more than {limit} bytes")
        return content

    def exists(self, sha256: str) -> bool:
        """True where the blob is in the store.

        Raises:
            BadIdentifier: not a digest.
        """
        return self.locate(sha256).is_file()

    def verify(self, sha256: str) -> BlobRef:
        """The blob's bytes have been read and give its name.

        Raises:
            BlobMissing: not in the store, or other bytes than its name says.
            BadIdentifier: not a digest.
        """
        digest, size = hashlib.sha256(), 0
        with self.open(sha256) as file, _storage_errors():
            while chunk := file.read(CHUNK):
                digest.update(chunk)
                size += len(chunk)
        if digest.hexdigest() != sha256:
            raise BlobMissing(f"blob {sha256[:12]}: its bytes differ from its name")
        return BlobRef(Sha256(sha256), size)

    def remove(self, digests: Iterable[str]) -> int:
        """The blobs are gone; returns how many were there.

        For bytes that nothing else can hold, because what they belong to stands in them: a blob whose bytes somebody
        else may put at the same moment must never be removed. A power cut may bring one back, named by nothing.

        Raises:
            BadIdentifier: not a digest.
            StorageFailed: the operating system refused; those before it are gone.
        """
        removed = 0
        for sha256 in digests:
            path = self.locate(sha256)
            with _storage_errors(), suppress(FileNotFoundError):
                path.unlink()
                removed += 1
        return removed

    def sweep(self) -> int:
        """Temporary files whose writer is dead are gone; returns how many there were.

        A writer holds a lock on its file as long as it lives, so another process's work is left alone.
        """
        swept = 0
        with _storage_errors():
            with os.scandir(self._temporary) as entries:
                names = [entry.name for _, entry in zip(range(MAX_SWEPT), entries, strict=False)]
            for name in names:
                swept += _remove_if_abandoned(self._temporary / name, self._clock.now().timestamp() - STALE_S)
        return swept

    def locate(self, sha256: str) -> Path:
        """Where the blob is, or would be.

        Raises:
            BadIdentifier: not a digest.
        """
        return Path(self._place(sha256))

    def _place(self, sha256: str) -> str:
        digest = Sha256.parse(sha256)
        return f"{self.root}/{digest[:2]}/{digest}"

    def _link(self, path: str | Path, sha256: Sha256) -> None:
        place = self._place(sha256)
        try:
            os.link(path, place)
        except FileExistsError:
            self._require_whole(Path(place), Path(path), sha256)
        except OSError as error:
            if error.errno not in _NO_HARD_LINK:
                raise
            with Path(path).open("rb") as file:
                stored = self.put(iter(lambda: file.read(CHUNK), b""))
            if stored.sha256 != sha256:
                raise StorageFailed("the file changed while it was copied") from error

    def _require_whole(self, target: Path, path: Path, sha256: Sha256) -> None:
        """The blob that is there already has the bytes of `path`, as durably as that file has them.

        A power cut may have left a name without its bytes, where nobody had fsynced them (durability = study), or the
        disk may refuse to give them.
        """
        ours = path.stat()
        try:
            with target.open("rb") as held:
                if os.path.samestat(os.fstat(held.fileno()), ours):
                    return
                if hashlib.file_digest(held, "sha256").hexdigest() == sha256:
                    os.fsync(held.fileno())
                    return
        except OSError as error:
            # What cannot be read is not kept: the same bytes are at hand.
            logger.warning(
                "blob.unreadable", extra={"sha256": sha256[:12], "error": errno.errorcode.get(error.errno or 0, "")}
            )
        temporary = self._temporary / f"{new_id()}.part"
        temporary.hardlink_to(path)
        temporary.replace(target)
        logger.error("blob.mended", extra={"sha256": sha256[:12]})

    @contextmanager
    def _temporary_file(self) -> Generator[tuple[int, Path]]:
        temporary = self._temporary / f"{new_id()}.part"
        with _storage_errors():
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with _storage_errors():
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield descriptor, temporary
        finally:
            os.close(descriptor)
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def _in_chunks(content: bytes | Iterable[bytes]) -> Iterator[bytes]:
    if isinstance(content, bytes):
        yield from (content[start : start + CHUNK] for start in range(0, len(content), CHUNK))
    else:
        yield from content


def _write_all(descriptor: int, chunk: bytes) -> None:
    view = memoryview(chunk)
    while view:
        view = view[os.write(descriptor, view) :]


def _remove_if_abandoned(path: Path, changed_before: float) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        # Between a writer's open and its lock the file looks abandoned: a minute's age tells them apart.
        if os.fstat(descriptor).st_mtime > changed_before:
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        path.unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _missing(sha256: str) -> BlobMissing:
    return BlobMissing(f"blob {sha256[:12]} is not in the store")


@contextmanager
def _storage_errors(missing: HeimdallrError | None = None) -> Generator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise missing or StorageFailed("a folder of the blob store has vanished") from error
    except OSError as error:
        if error.errno in _FULL:
            raise StorageFull("no room for the blob") from error
        raise StorageFailed(f"the operating system refused: {os.strerror(error.errno or 0)}") from error
