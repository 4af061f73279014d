"""The log of a running stack: every process writes it, it outlives the stack, and no patient is in it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from heimdallr_ray.catalog.states import TERMINAL
from heimdallr_ray.ids import Uid
from heimdallr_ray.listener.snapshots import CHORES_EVERY_S
from heimdallr_ray.security.audit_check import Anchor
from tests.support import dicom as synthetic
from tests.support.stack import Stack, listener_process

pytestmark = pytest.mark.timeout(600)

PATIENT = "XQZVORGN"
"""As long as a date."""
NAMES = ("supervisor", "listener", "ingress", "consumer", "segmenter")
ANCHORING = ("listener", "ingress")
SECRET = "XQZSECRETQUERY"
SAID_S = 120.0
"""Many times what the slowest line takes."""


def lines(stack: Stack, name: str) -> list[dict[str, Any]]:
    path = stack.data_dir / "logs" / f"{name}.log"
    return [json.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def said(stack: Stack, name: str, event: str, **fields: object) -> dict[str, Any]:
    """The first line of that event with these fields, which comes soon."""

    def found() -> dict[str, Any] | None:
        for line in lines(stack, name):
            has: dict[str, Any] = line.get("fields", {})
            if line["event"] == event and all(has.get(key) == value for key, value in fields.items()):
                return line
        return None

    return stack.wait_for(found, SAID_S, f"{event} in {name}.log")


def anchored(stack: Stack, least: int) -> Anchor:
    """An end of the audit chain with at least so many entries: told within a minute, by whichever process is due."""

    def found() -> Anchor | None:
        told = [line["fields"] for name in ANCHORING for line in lines(stack, name) if line["event"] == "audit.anchor"]
        return next((Anchor(one["entries"], one["mac"]) for one in told if one["entries"] >= least), None)

    return stack.wait_for(found, 5 * CHORES_EVERY_S, f"audit.anchor of {least} entries in {ANCHORING}")


def malformed() -> list[bytes]:
    """Images with the patient's name where a parser expects a number, a date or a UID, and warns of it or stops."""
    made: list[bytes] = []
    for number, old in enumerate((b"0.7\\0.7 ", b"20260102", b"1.2.840.10008.5.1.4.1.1.2\0", b"")):
        (dataset,) = synthetic.ct_datasets(1, seed=f"malformed {number}", PatientName=PATIENT, PatientID=PATIENT)
        content = synthetic.to_bytes(dataset)
        assert old in content
        made.append(content.replace(old, PATIENT.encode().ljust(len(old), b"X")) if old else content[:700])
    return made


@pytest.mark.slow
def test_the_end_of_the_audit_chain_is_told_in_the_log_and_verifies_the_chain(stack: Stack, tmp_path: Path) -> None:
    for index, content in enumerate(synthetic.ct_study(2, shape=(16, 16), spacing_mm=4.0)):
        (tmp_path / f"{index}.dcm").write_bytes(content)
    assert stack.run("send", str(tmp_path), "--port", str(stack.dicom_port), "--called", "NOBODY").returncode != 0
    said(stack, "listener", "association.rejected", reason="called_ae")
    now = Anchor.parse(stack.run("audit", "head").stdout)
    assert now.entries > 0
    told = anchored(stack, now.entries)
    verified = stack.run("audit", "verify", "--anchor", str(told))
    assert verified.returncode == 0, verified.stdout + verified.stderr


def test_what_the_stack_logs_is_in_its_files_without_patients_and_stays(stack: Stack, tmp_path: Path) -> None:
    # A caller by a wrong name.
    (tmp_path / "good").mkdir()
    made = synthetic.ct_study(
        4,
        shape=(64, 64),
        spacing_mm=4.0,
        StudyInstanceUID=(uid := str(Uid.derived("log", str(tmp_path)))),
        PatientName=f"{PATIENT}^JANE",
        PatientID=f"{PATIENT}1",
        SeriesDescription=PATIENT,
    )
    for index, content in enumerate(made):
        (tmp_path / "good" / f"{index}.dcm").write_bytes(content)
    port = str(stack.dicom_port)
    refused = stack.run("send", str(tmp_path / "good"), "--port", port, "--called", "NOBODY", "--calling", "EVIL_CT")
    assert refused.returncode != 0
    line = said(stack, "listener", "association.rejected", calling_ae="EVIL_CT")
    assert (line["level"], line["process"]) == ("WARNING", "listener")
    assert line["fields"] == {
        "reason": "called_ae",
        "address": "127.0.0.1",
        "calling_ae": "EVIL_CT",
        "called_ae": "NOBODY",
    }
    assert line["time"].endswith("Z")

    # A study, objects that cannot be read, and a request with a query string.
    assert stack.run_json("send", str(tmp_path / "good"), "--port", port)["failed"] == 0
    (tmp_path / "bad").mkdir()
    bodies = malformed()
    for index, content in enumerate(bodies):
        (tmp_path / "bad" / f"{index}.dcm").write_bytes(content)
    stack.run("send", str(tmp_path / "bad"), "--port", port)
    for content in (*bodies, PATIENT.encode()):
        files = {"file": (f"{PATIENT}.dcm", content)}
        httpx.post(f"{stack.url}/api/v1/upload?token={SECRET}", files=files, timeout=60)
    answer = httpx.post(f"{stack.url}/api/v1/studies/{PATIENT}/retry?token={SECRET}", timeout=60)
    assert answer.status_code >= 400
    said(stack, "ingress", "request.refused", route="/api/v1/studies/{study_uid}/retry")

    # The processes behind the listener and Serve.
    with socket.create_connection(("127.0.0.1", stack.dicom_port), timeout=10):
        pass
    line = said(stack, "listener", "connection.closed", reason="no_request")
    assert line["process"] == "receiver"
    receiver = line["pid"]
    assert receiver in [child.pid for child in listener_process(stack).children()]
    os.kill(receiver, signal.SIGKILL)
    said(stack, "listener", "receiving_process.died", pid=receiver)
    said(stack, "segmenter", "model.loaded")
    stack.finished(uid)
    said(stack, "listener", "study.closed")

    def ended() -> bool:
        return all(study["state"] in TERMINAL for study in stack.studies())

    stack.wait_for(ended, 120, "what was sent to be worked on")
    before = lines(stack, "listener")
    stack.stop()
    assert lines(stack, "listener")[: len(before)] == before
    assert lines(stack, "listener")[-1]["event"] == "listener.closed"
    texts = {path: path.read_bytes() for path in (stack.data_dir / "logs").rglob("*") if path.is_file()}
    assert {path.name for path in texts} >= {f"{name}.log" for name in NAMES}
    assert [path for path, text in texts.items() if PATIENT.encode() in text or SECRET.encode() in text] == []
    private = [stack.data_dir / "logs" / f"{name}.log" for name in (*NAMES, "ray-head")]
    private += [stack.data_dir / name for name in ("run", "logs", "spool", "blobs")]
    assert [path for path in private if path.stat().st_mode & 0o077] == []
    assert [line["fields"]["state"] for line in lines(stack, "supervisor") if line["event"] == "stack.state"][-2:] == [
        "ready",
        "stopping",
    ]


def test_a_log_that_cannot_be_written_stops_the_start_and_says_so(tmp_path: Path) -> None:
    own = Stack(tmp_path / "data")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "logs").write_bytes(b"")
    done = subprocess.run(own.command("up"), env=own.environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "not_ready: the log cannot be written to" in done.stdout + done.stderr
