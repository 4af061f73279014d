"""`make setup` on an installation that is there: next to nothing, and after a change only what depends on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BAR_S = 5.0
FILES = ("Makefile", "pyproject.toml", "hatch_build.py", "requirements.lock")
INSTALLED = (
    ".venv/bin/python",
    "dashboard/node_modules/.package-lock.json",
    "heimdallr_ray/dashboard/static/index.html",
)
STAMPS = tuple(f".cache/stamps/{name}" for name in ("python", "locked", "package", "npm", "web"))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What make looks at of a checkout whose setup has been done."""
    for name in FILES:
        shutil.copy2(ROOT / name, tmp_path / name)
    shutil.copytree(ROOT / "dashboard", tmp_path / "dashboard", ignore=shutil.ignore_patterns("node_modules", "dist"))
    for name in (*INSTALLED, *STAMPS):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def make(folder: Path, *words: str) -> str:
    """What make prints. Nothing is ever installed here: the only program on its way would be an empty file."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "--no-print-directory", *words],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout


def later(path: Path) -> None:
    """It was changed after the setup."""
    moment = time.time() + 60
    os.utime(path, (moment, moment))


def test_a_second_setup_does_nothing_and_costs_little(checkout: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in checkout.rglob("*")}
    began = time.monotonic()
    printed = make(checkout, "setup")
    assert time.monotonic() - began < BAR_S
    assert "Nothing to be done for 'setup'" in printed
    assert {path: path.stat().st_mtime_ns for path in checkout.rglob("*")} == before


@pytest.mark.parametrize(
    ("changed", "done", "left"),
    [
        ("dashboard/src/main.tsx", "run build", "pip install"),
        ("requirements.lock", "--require-hashes", ""),
        ("pyproject.toml", "--editable .", "--require-hashes"),
        ("dashboard/package-lock.json", " ci ", "pip install"),
    ],
)
def test_after_a_change_what_depends_on_it_is_done_and_no_more(
    checkout: Path, changed: str, done: str, left: str
) -> None:
    later(checkout / changed)
    printed = make(checkout, "--dry-run", "setup")
    assert done in printed
    assert not left or left not in printed


@pytest.mark.parametrize(
    ("removed", "done"), [(INSTALLED[0], "-m venv"), (INSTALLED[2], "run build"), ("dashboard/node_modules", " ci ")]
)
def test_what_was_removed_by_hand_is_made_again(checkout: Path, removed: str, done: str) -> None:
    path = checkout / removed
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert done in make(checkout, "--dry-run", "setup")
