"""A port of ours that somebody else holds: another data folder's Heimdallr is told from any other program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from heimdallr_ray.config import Settings, load
from heimdallr_ray.operations import doctor, lock, neighbours, status
from heimdallr_ray.operations.lock import DataFolderLock, Holder

LISTEN = (
    "import http.server, sys\n"
    "class Handler(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self):\n"
    "        self.send_response(200); self.end_headers(); self.wfile.write(sys.argv[1].encode())\n"
    "server = http.server.HTTPServer(('127.0.0.1', 0), Handler)\n"
    "print(server.server_port, flush=True)\n"
    "server.serve_forever()\n"
)


@contextmanager
def listening(answer: str = "", **variables: str) -> Generator[tuple[int, int]]:
    """Port and pid of another process that answers HTTP."""
    process = subprocess.Popen(
        [sys.executable, "-c", LISTEN, answer],
        env={**os.environ, **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline()), process.pid
    finally:
        process.kill()
        process.communicate(timeout=10)


def holder(pid: int, state: str = "ready", step: str = "") -> Holder:
    return Holder(pid, "2026-01-02T03:04:05", "http://127.0.0.1:1", "HEIMDALLR@127.0.0.1:2", "build", state, step)


def ours(tmp_path: Path, **ports: int) -> Settings:
    values: dict[str, Any] = {"server_port": 0, "dicom_port": 0, "ray_port": 0, **ports}
    return load({}, data_dir=tmp_path / "ours", **values)


@pytest.mark.parametrize("name", ["server_port", "dicom_port"])
def test_another_folders_stack_is_named_with_folder_and_pid(tmp_path: Path, name: str) -> None:
    other = DataFolderLock(tmp_path / "theirs" / "run")
    other.note(holder(4242))
    with listening(RAY_AUTH_TOKEN_PATH=str(tmp_path / "theirs" / "run" / "ray_token")) as (port, _):
        settings = ours(tmp_path, **{name: port})
        report = status.collect(settings)
        found = [one for one in doctor.check_ports(settings) if not one.ok]
    other.release()
    (words,) = report["ports"].values()
    assert report["state"] == "down" and status.exit_status(report) == 3
    assert f"another Heimdallr, on data folder {tmp_path / 'theirs'} (supervisor pid 4242)" in words
    assert f"{name.removesuffix('_port').upper().replace('SERVER', 'HTTP')} port {port}" in report["ports"]
    assert len(found) == 1 and str(tmp_path / "theirs") in found[0].detail
    assert f"heimdallr down --data-dir {tmp_path / 'theirs'}" in found[0].mend and "HEIMDALLR_" in found[0].mend


def test_what_a_killed_stack_of_our_own_left_is_not_another(tmp_path: Path) -> None:
    with listening(RAY_AUTH_TOKEN_PATH=str(tmp_path / "ours" / "run" / "ray_token")) as (port, pid):
        (words,) = status.collect(ours(tmp_path, server_port=port))["ports"].values()
    assert "another Heimdallr" not in words and f"left behind (pid {pid})" in words


def test_a_heimdallr_whose_process_tells_nothing_is_known_by_its_answer(tmp_path: Path) -> None:
    with listening('{"status": "alive"}', RAY_AUTH_TOKEN_PATH="") as (port, _):
        (words,) = status.collect(ours(tmp_path, server_port=port))["ports"].values()
    assert "another Heimdallr" in words and "cannot see" in words


def test_any_other_program_is_not_taken_for_a_heimdallr(tmp_path: Path) -> None:
    with listening('{"status": "fine"}', RAY_AUTH_TOKEN_PATH="relative/run/ray_token") as (port, pid):
        found = neighbours.holder_of(ours(tmp_path), neighbours.HTTP, "127.0.0.1", port)
    assert found is not None and "Heimdallr" not in found.words and f"pid {pid}" in found.words
    assert "ports" not in status.collect(ours(tmp_path))


def test_status_tells_the_step_of_a_stack_that_is_starting(tmp_path: Path) -> None:
    settings = ours(tmp_path)
    held = DataFolderLock(settings.run_dir)
    held.note(holder(os.getpid(), "starting"))
    assert (status.collect(settings)["state"], status.collect(settings)["step"]) == ("starting", status.FIRST_STEP)
    lock.note_step(settings.run_dir, "ray head")
    report = status.collect(settings)
    assert (report["state"], report["step"], status.exit_status(report)) == ("starting", "ray head", 1)
    assert "listener" not in report
    held.release()


def test_only_the_holder_tells_its_step_and_only_while_it_starts(tmp_path: Path) -> None:
    held = DataFolderLock(tmp_path)
    for one in (holder(os.getpid() + 1, "starting"), holder(os.getpid(), "ready")):
        held.note(one)
        lock.note_step(tmp_path, "ray head")
        assert lock.read_holder(tmp_path) == one
    held.release()
    lock.note_step(tmp_path, "ray head")
    assert lock.read_holder(tmp_path) is None
