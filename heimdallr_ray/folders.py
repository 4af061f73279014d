"""Folders of patients' data: nobody but the user of the service reads them, unless the site made them otherwise."""

from __future__ import annotations

import os
from pathlib import Path

FOLDER_MODE = 0o700
FILE_MODE = 0o600


def make_private(folder: Path) -> None:
    """`folder` exists; it and those above it that are new are of FOLDER_MODE, the others as they were.

    `Path.mkdir` gives its mode to the last folder alone, and makes those above it readable by everybody.

    Raises:
        OSError: it cannot be made, or is a file.
    """
    if not folder.parent.exists():
        make_private(folder.parent)
    folder.mkdir(mode=FOLDER_MODE, exist_ok=True)


def open_private(path: str, flags: int) -> int:
    """As `opener` of `open`: a file that is new is of FILE_MODE; the descriptor.

    Raises:
        OSError: it cannot be opened.
    """
    return os.open(path, flags | os.O_CLOEXEC, FILE_MODE)


def sync_folder(folder: Path) -> None:
    """The names in `folder` are on the disk.

    Raises:
        OSError: the disk refused.
    """
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
