"""The key of the audit chain: 32 random bytes in a file that only the service's user can read.

Whoever holds the key can write a chain that verifies, and who has lost it cannot verify the old one any more: keep a
copy where those who can write the database cannot read it (docs/operations/audit.md).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
from dataclasses import dataclass, field
from pathlib import Path

from heimdallr_ray.errors import BadSetting, StorageFailed
from heimdallr_ray.folders import make_private

KEY_BYTES = 32
_TEXT = re.compile(rb"[0-9a-f]{64}\n?")
_READ_LIMIT = 256
_ID_LENGTH = 16


@dataclass(frozen=True)
class AuditKey:
    """The secret, and a name for it that tells nothing of it."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        """16 hexadecimal digits; the same for the same secret."""
        return self.mac(b"heimdallr-audit-key-id")[:_ID_LENGTH]

    def mac(self, message: bytes) -> str:
        """HMAC-SHA256 (RFC 2104) of `message`, in hexadecimal."""
        return hmac.new(self.secret, message, hashlib.sha256).hexdigest()


def read_key(path: Path) -> AuditKey:
    """The key in `path`.

    Raises:
        FileNotFoundError: there is none.
        BadSetting: others than its owner can read it, or it is no key; says how to mend it.
        StorageFailed: it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            found = os.fstat(fd)
            if not stat.S_ISREG(found.st_mode):
                raise BadSetting(f"audit_key_file: {path.name} is no file")
            if found.st_mode & 0o077:
                raise BadSetting(f"audit_key_file: others may read or write {path.name}: chmod 600 it")
            content = os.read(fd, _READ_LIMIT)
        finally:
            os.close(fd)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise StorageFailed(f"audit_key_file: {os.strerror(error.errno or 0)}") from error
    if not _TEXT.fullmatch(content):
        raise BadSetting(f"audit_key_file: {path.name} does not hold {KEY_BYTES} bytes as 64 hexadecimal digits")
    return AuditKey(bytes.fromhex(content.decode("ascii")))


def ensure_key(path: Path) -> AuditKey:
    """The key in `path`, made where there is none. Processes that start together get the same one.

    Raises:
        BadSetting: what is there is no key, or others can read it.
        StorageFailed: it can be neither read nor made.
    """
    try:
        return read_key(path)
    except FileNotFoundError:
        _make(path)
    try:
        return read_key(path)
    except FileNotFoundError as error:
        raise StorageFailed("audit_key_file: was there and is gone") from error


def _make(path: Path) -> None:
    """A key is in `path`, durable: ours, or that of a process which was faster."""
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}.part")
    try:
        make_private(path.parent)
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, secrets.token_hex(KEY_BYTES).encode("ascii") + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        try:
            # A link never replaces a file that is there: the first process wins, and nobody sees half a key.
            os.link(draft, path)
        except FileExistsError:
            return
        finally:
            draft.unlink(missing_ok=True)
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise StorageFailed(f"audit_key_file: cannot be made: {os.strerror(error.errno or 0)}") from error
