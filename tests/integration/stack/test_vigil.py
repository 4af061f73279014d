"""What ends while the stack runs is noticed, said, shown by `status`, and ready again when it is mended."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from heimdallr_ray.operations import lock
from heimdallr_ray.segmentation.demo import weights_dir
from tests.support.stack import Stack, listener_process

pytestmark = [pytest.mark.timeout(900), pytest.mark.slow]


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "data")
    yield made
    made.clean_up()


def taken(port: int) -> socket.socket:
    """The port is ours, as soon as its holder has let go of it."""
    deadline = time.monotonic() + 5
    while True:
        holder = socket.socket()
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            holder.bind(("127.0.0.1", port))
            holder.listen()
        except OSError:
            holder.close()
            assert time.monotonic() < deadline, "somebody holds the port"
            time.sleep(0.01)
        else:
            return holder


def components(stack: Stack) -> dict[str, str]:
    return httpx.get(f"{stack.url}/api/v1/ready", timeout=10).json()["components"]


def note(stack: Stack) -> lock.Holder:
    found = lock.read_holder(stack.data_dir / "run")
    assert found is not None
    return found


def reached(stack: Stack, state: str, within_s: float) -> lock.Holder:
    stack.wait_for(lambda: stack.state() == state, within_s, f"the state to be {state}")
    return note(stack)


def test_a_listener_that_does_not_come_back_is_told_and_made_anew(own: Stack) -> None:
    own.start()
    assert components(own) == {
        "StudyConsumer": "ready",
        "Segmenter": "ready",
        "MedGemma": "idle",
        "ReportBuilder": "idle",
        "DicomListener": "ready",
    }
    listener_process(own).kill()
    with taken(own.dicom_port):
        killed = time.monotonic()
        detail = reached(own, "degraded", 60).detail
        assert detail.startswith("DICOM listener: "), detail
        report = own.run_json("status")
        assert (report["state"], report["detail"][:14]) == ("degraded", "DICOM listener")
        assert own.run("status").returncode == 1
        assert components(own)["DicomListener"] != "ready"
        # Its restarted process gives up after 30 s without the port, and Ray gives up the actor.
        time.sleep(max(0.0, 45 - (time.monotonic() - killed)))
        assert own.state() == "degraded"
    reached(own, "ready", 120)
    own.wait_for(lambda: own.run_json("status")["listener"].startswith("well"), 60, "the listener to answer")
    own.wait_for(lambda: components(own)["DicomListener"] == "ready", 20, "readiness to say so")
    assert own.run("status").returncode == 0
    said = own.log_file.read_text()
    assert "degraded: DICOM listener does not work" in said
    assert "DICOM listener works again" in said


def test_models_that_cannot_be_loaded_again_are_told_until_they_can(own: Stack, tmp_path: Path) -> None:
    weights, aside = tmp_path / "weights", tmp_path / "aside"
    shutil.copytree(weights_dir(), weights)
    own.overrides = {"HEIMDALLR_WEIGHTS_DIR": str(weights)}
    own.start()
    weights.rename(aside)
    (replica,) = [one for one in own.members() if "ServeReplica:heimdallr:Segmenter" in " ".join(one.cmdline())]
    replica.kill()
    own.wait_for(lambda: components(own)["Segmenter"] != "ready", 60, "readiness to say so")
    detail = reached(own, "degraded", 150).detail
    assert "Segmenter: " in detail, detail
    aside.rename(weights)
    reached(own, "ready", 240)
    assert components(own)["Segmenter"] == "ready"
