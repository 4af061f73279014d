"""Which build of the package this is."""

from __future__ import annotations

import hashlib
from pathlib import Path

import heimdallr_ray

BEHAVIOUR = (".py", ".toml", ".yaml")
"""Kinds of file whose change is a change of behaviour; the pages are read anew from the disk anyway."""


def build_id(root: Path | None = None) -> str:
    """Version plus a digest of the package's own sources and rule tables: what changed is redeployed."""
    root = root or Path(heimdallr_ray.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(path for path in root.rglob("*") if path.suffix in BEHAVIOUR and path.is_file()):
        digest.update(f"{path.relative_to(root).as_posix()}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return f"{heimdallr_ray.__version__}+{digest.hexdigest()[:12]}"
