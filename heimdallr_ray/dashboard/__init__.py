"""The built web app. Its source is the folder dashboard/ at the top of the repository; the build writes `static/`."""

from __future__ import annotations

from pathlib import Path


def static_dir() -> Path | None:
    """The folder of the built pages, or None where they have not been built."""
    folder = Path(__file__).parent / "static"
    return folder if (folder / "index.html").is_file() else None
