"""Certificates of an authority of our own, made by the openssl program."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Certificate:
    """PEM files."""

    certificate: Path
    key: Path


_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256")


def _openssl(*words: str) -> None:
    subprocess.run(["openssl", *words], check=True, capture_output=True, timeout=60)


@dataclass(frozen=True)
class Authority:
    """Signs certificates in `folder`."""

    folder: Path
    name: str

    @property
    def certificate(self) -> Path:
        return self.folder / f"{self.name}.pem"

    def issue(self, name: str, host: str = "127.0.0.1", *, days: int = 2) -> Certificate:
        """A certificate for `host` (an address) and localhost, that expires in `days`."""
        key, request, made = (self.folder / f"{name}.{end}" for end in ("key", "csr", "pem"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=IP:{host},DNS:localhost\nkeyUsage=digitalSignature\n")
        _openssl("req", *_NEW_KEY, "-nodes", "-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}")
        _openssl(
            "x509", "-req", "-in", str(request), "-CA", str(self.certificate), "-CAkey",
            str(self.folder / f"{self.name}.key"), "-CAcreateserial", "-days", str(days), "-out", str(made),
            "-extfile", str(extensions),
        )  # fmt: skip
        return Certificate(made, key)


def authority(folder: Path, name: str = "authority") -> Authority:
    """A new authority, with its files in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    _openssl(
        "req", "-x509", *_NEW_KEY, "-nodes", "-days", "2", "-subj", f"/CN={name}", "-addext",
        "keyUsage=critical,keyCertSign,cRLSign", "-keyout", str(folder / f"{name}.key"), "-out",
        str(folder / f"{name}.pem"),
    )  # fmt: skip
    return Authority(folder, name)
