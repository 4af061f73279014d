"""A disk that refuses one call, in this process or in those that it starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PLACES: Mapping[str, Callable[[Path], bool]] = {
    "image": lambda path: path.suffix == ".part",
    "ready folder": lambda path: path.name == "ready",
}


def refuse_once(
    call: str, place: str, code: int, armed: Path, put: Callable[[Any, str, object], object] = setattr
) -> None:
    """The operating system refuses one `call` of this process.

    Args:
        call: `fsync` or `write`.
        place: on which file or folder, a key of PLACES.
        code: errno.
        armed: the first such call while this file exists is refused, and takes the file away.
        put: as `setattr`; `monkeypatch.setattr` ends it with the test.
    """

    def failing(real: Callable[..., object], fd: int, *arguments: object) -> object:
        if armed.exists() and PLACES[place](Path(f"/proc/self/fd/{fd}").readlink()):
            armed.unlink()
            raise OSError(code, os.strerror(code))
        return real(fd, *arguments)

    for name in ("write", "writev") if call == "write" else (call,):
        put(os, name, partial(failing, getattr(os, name)))


def refuse_once_in_children(
    folder: Path, call: str, place: str, code: int, armed: Path, setenv: Callable[[str, str], object]
) -> None:
    """As `refuse_once`, in Python processes that are started from now on.

    Args:
        folder: gets the module that each of them imports at its start (see `site` of the standard library).
        setenv: as `monkeypatch.setenv`.
    """
    lines = (
        "import sys",
        "from pathlib import Path",
        f"sys.path.insert(0, {str(ROOT)!r})",
        "from tests.support.disk_errors import refuse_once",
        f"refuse_once({call!r}, {place!r}, {code}, Path({str(armed)!r}))",
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text("\n".join(lines) + "\n", encoding="utf-8")
    setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH", "")))))
