"""Folders that upstream's settings live in: private to a process, and gone when it is."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from heimdallr_ray.errors import Broken
from heimdallr_ray.segmentation.totalseg import environment

PREPARE = """
import os, sys
from pathlib import Path
from heimdallr_ray.segmentation.totalseg import environment
first = environment.prepare(Path("weights"))
second = environment.prepare(Path("weights"))
child = os.fork()
if child == 0:
    sys.exit(0)
os.waitpid(child, 0)
assert first == second and (first / "config.json").is_file()
assert os.environ["TOTALSEG_HOME_DIR"] == str(first)
print(first)
"""


def ended_pid() -> int:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait(60)
    return ended.pid


def test_no_temporary_folder_is_left_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PREPARE],
        env=os.environ | {"TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).parent == tmp_path
    assert list(tmp_path.iterdir()) == []


def test_a_replica_removes_the_folders_of_those_that_ended(tmp_path: Path) -> None:
    host, root = socket.gethostname(), tmp_path / "run" / "totalsegmentator"
    stale = root / f"{host}-{ended_pid()}"
    earlier_self = root / f"{host}-{os.getpid()}"
    alive = root / f"{host}-{os.getppid()}"
    other_host, stranger = root / f"elsewhere-{ended_pid()}", root / "notes"
    for folder in (stale, earlier_self, alive, other_host, stranger):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    home = environment.process_home(root)
    assert home == earlier_self and list(home.iterdir()) == []
    assert home.stat().st_mode & 0o077 == 0
    assert {path.name for path in root.iterdir()} == {home.name, alive.name, other_host.name, stranger.name}


def test_settings_say_that_nothing_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TOTALSEG_HOME_DIR", "TOTALSEG_WEIGHTS_PATH", "nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, os.environ.get(name, ""))
    home = environment.prepare(tmp_path / "weights", environment.process_home(tmp_path))
    written = json.loads((home / "config.json").read_text())
    assert written["send_usage_stats"] is False and "license_number" not in written
    assert [path.name for path in home.iterdir()] == ["config.json"]


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(Broken, match="no folder for TotalSegmentator's settings"):
        environment.process_home(tmp_path / "run" / "totalsegmentator")
