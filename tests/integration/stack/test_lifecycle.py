"""up, down, status, doctor: ready or a reason, stopped without a trace."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from heimdallr_ray.operations import processes
from tests.support.stack import HANG_S, Stack, gone

pytestmark = pytest.mark.timeout(600)
STEPS = {"ports and weights", "database", "ray head", "DICOM listener", "models and Serve application"}


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "data")
    yield made
    made.clean_up()


def test_second_up_refuses_and_names_the_holder(stack: Stack) -> None:
    assert stack.process is not None
    second = stack.run("up", timeout_s=60)
    assert second.returncode == 1
    assert "already_running" in second.stderr
    assert f"pid {stack.process.pid}" in second.stderr
    assert stack.state() == "ready"


def test_status_and_doctor_tell_what_runs(stack: Stack) -> None:
    status = stack.run("status", "--json")
    assert status.returncode == 0, status.stdout + status.stderr
    report = json.loads(status.stdout)
    assert report["state"] == "ready"
    assert "step" not in report
    assert report["listener"] == f"well: port {stack.dicom_port}, 0 open"
    assert report["api"]["profile"] == "demo"
    told = stack.run_json("doctor")
    findings = {finding["name"]: finding for finding in told}
    assert findings["weights"]["ok"]
    assert "DEMO WEIGHTS" in findings["weights"]["detail"]
    assert findings["Ray token"]["ok"]
    assert findings["database"]["ok"]
    # Ray listens on all addresses: something to know, nothing that is wrong.
    assert findings["listeners of Ray"]["level"] == "note" and findings["listeners of Ray"]["ok"]
    listening = [finding["detail"] for finding in told if finding["name"] == "listener"]
    assert any(f":{stack.dicom_port} " in detail for detail in listening)
    assert any(f":{stack.server_port} " in detail for detail in listening)


def test_another_folder_is_told_whose_ports_these_are(stack: Stack, tmp_path: Path) -> None:
    assert stack.process is not None
    whose = f"another Heimdallr, on data folder {stack.data_dir} (supervisor pid {stack.process.pid})"
    status = stack.run("status", "--json", "--data-dir", str(tmp_path))
    assert status.returncode == 3
    report = json.loads(status.stdout)
    assert report["state"] == "down"
    for name in (f"HTTP port {stack.server_port}", f"DICOM port {stack.dicom_port}"):
        assert whose in report["ports"][name]
    second = stack.run("up", "--data-dir", str(tmp_path), timeout_s=60)
    assert second.returncode == 1 and whose in second.stderr


def test_what_a_start_tells_is_ours_alone(stack: Stack) -> None:
    assert "Started Serve" not in stack.log_file.read_text()


def test_a_start_tells_of_rays_ports_that_listen_on_all_addresses(stack: Stack) -> None:
    (line,) = [one for one in stack.log_file.read_text().splitlines() if "listen on all addresses" in one]
    assert "docs/operations/security.md" in line
    assert int(line.split(" ports listen")[0].split()[-1]) > 0


@pytest.mark.parametrize(
    "after_s", [1.0, *(pytest.param(after_s, marks=pytest.mark.slow) for after_s in (4.0, 9.0, 16.0))]
)
def test_a_signal_during_the_start_leaves_nothing(own: Stack, after_s: float) -> None:
    with own.log_path().open("ab") as log:
        own.process = subprocess.Popen(
            own.command("up"), env=own.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
    time.sleep(after_s)
    members = own.members()
    status = own.run_json("status")
    assert status["state"] == "ready" or "listener" not in status
    assert status["state"] != "starting" or status["step"] in STEPS
    seconds = own.stop()
    print(f"stopped after {seconds:.1f} s")
    assert seconds <= HANG_S
    gone(members)


@pytest.mark.parametrize(
    "after_s", [pytest.param(0.0, marks=pytest.mark.slow), 0.5, pytest.param(1.0, marks=pytest.mark.slow)]
)
def test_a_signal_while_ray_connects_leaves_nothing(own: Stack, after_s: float) -> None:
    """Between the raylet's birth and the end of ray.init the raylet's death ends the process that connects."""
    with own.log_path().open("ab") as log:
        own.process = subprocess.Popen(
            own.command("up"), env=own.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )

    def raylet() -> bool:
        return any(process.is_running() and process.name() == "raylet" for process in own.members())

    assert processes.wait_until(raylet, timeout_s=60, every_s=0.02)
    time.sleep(after_s)
    members = own.members()
    assert own.stop() <= HANG_S
    gone(members)
    assert own.run_json("status")["state"] == "down"
    assert own.process.returncode == 1


def test_a_taken_port_is_named_before_anything_starts(own: Stack) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", own.dicom_port))
        taken.listen()
        refused = own.run("up", timeout_s=60)
    assert refused.returncode == 1
    assert f"DICOM port {own.dicom_port} is taken" in refused.stderr


def test_unknown_setting_stops_the_start(own: Stack) -> None:
    own.overrides = {"HEIMDALLR_IDLE_SECOND": "3"}
    refused = own.run("up", timeout_s=60)
    assert refused.returncode == 1
    assert "HEIMDALLR_IDLE_SECOND;" in refused.stderr and "HEIMDALLR_IDLE_SECONDS?" in refused.stderr


def test_open_bind_without_a_rule_is_refused(own: Stack) -> None:
    own.overrides = {"HEIMDALLR_SERVER_HOST": "0.0.0.0"}
    refused = own.run("up", timeout_s=60)
    assert refused.returncode == 1
    assert "api_token" in refused.stderr


def test_down_on_a_folder_where_nothing_runs(own: Stack) -> None:
    assert own.run("down").returncode == 0
    assert own.run("status").returncode == 3
