"""Thousands of damaged objects by C-STORE and by the reader of headers: an answer each, within bounds."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)
from sqlmodel import col, select

from heimdallr_ray.catalog.tables import InstanceRow, SeriesRow, StudyRow
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.errors import HeimdallrError
from tests.hostile.dicom.test_mutations import damaged, series_in
from tests.support.intake import Intake, dataset_bytes, sha256, wait_for
from tests.support.listeners import ListenerProcess, running
from tests.support.wirepeer import CT, WirePeer, associate_rq, command_set, echoes, pdata

SEEDS = tuple(
    str(syntax)
    for syntax in (
        ExplicitVRLittleEndian,
        ImplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEGLSLossless,
        JPEG2000Lossless,
    )
)
SENDERS = 4
HANG_S = 2.0
TRIES = 3
IN_ALL_S = 180.0
"""Seven times as long as it takes on two cores that others use too, so that who waits here has hung."""
CPU_S = 60.0
"""Seven times what it costs."""


def mutants(count: int) -> list[tuple[str, bytes]]:
    """Transfer syntax and damaged data set; the same ones in each run."""
    originals = {syntax: [dataset_bytes(content) for content in series_in(syntax)] for syntax in SEEDS}
    made: list[tuple[str, bytes]] = []
    for seed in range(count):
        rng = np.random.default_rng([17, seed])
        syntax = SEEDS[seed % len(SEEDS)]
        body = originals[syntax][int(rng.integers(0, len(originals[syntax])))]
        # The damage leaves the first 132 bytes alone: here a preamble that is not sent.
        made.append((syntax, damaged(bytes(132) + body, rng)[132:]))
    return made


class Sender:
    """Offers its share on one association and notes what was answered."""

    def __init__(self, port: int, share: list[tuple[str, bytes]]) -> None:
        self.answers: list[tuple[bytes, int]] = []
        self.slowest_s = 0.0
        self.error: BaseException | None = None
        self._port, self._share = port, share
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            with WirePeer(self._port, SEEDS) as peer:
                for number, (syntax, body) in enumerate(self._share):
                    took: list[float] = []
                    # Of a time that others' work on the machine may lengthen, the best counts.
                    while not took or (min(took) > HANG_S and len(took) < TRIES):
                        began = time.monotonic()
                        status = peer.store(body, f"1.2.3.{number}", syntax)
                        took.append(time.monotonic() - began)
                        self.answers.append((body, status))
                    self.slowest_s = max(self.slowest_s, min(took))
        except BaseException as error:
            self.error = error


def read_all(found: list[tuple[str, bytes]]) -> float:
    """Every mutant as a file for `read_header`; the longest processor time of one."""
    slowest = 0.0
    for syntax, body in found:
        padded = syntax.encode() + b"\0" * (len(syntax) % 2)
        meta = b"\x02\x00\x10\x00UI" + len(padded).to_bytes(2, "little") + padded
        content = bytes(128) + b"DICM" + meta + body
        began = time.thread_time()
        with contextlib.suppress(HeimdallrError):
            read_header(content)
        slowest = max(slowest, time.thread_time() - began)
    return slowest


def offer_all(listener: ListenerProcess, found: list[tuple[str, bytes]]) -> None:
    """Every mutant by C-STORE; the listener lives, has hung nowhere, and has what it acknowledged."""
    senders = [Sender(listener.port, found[n::SENDERS]) for n in range(SENDERS)]
    for sender in senders:
        sender.thread.join(600)
    assert [sender.error for sender in senders] == [None] * SENDERS
    answers = [answer for sender in senders for answer in sender.answers]
    assert len(answers) >= len(found)
    assert max(sender.slowest_s for sender in senders) < HANG_S
    stored = [body for body, status in answers if status == 0]
    refused = {status for _, status in answers if status != 0}
    print(f"{len(answers)} mutants offered, {len(stored)} stored, refused with {sorted(map(hex, refused))}")
    assert refused, "the damage is too mild to show anything"
    assert all(status & 0xF000 in (0xA000, 0xC000) for status in refused)
    wait_for(lambda: listener.status()["spool"] == 0, 60, "all acknowledged to be rows")
    status = listener.status()
    assert status["errors"] == {}
    assert status["quarantined"] == 0
    assert status["healthy"]
    acknowledged = {sha256(body) for body in stored}
    blobs = {path.name: path for path in Path(listener.root, "blobs").glob("??/*") if len(path.name) == 64}
    assert {sha256(dataset_bytes(path.read_bytes())) for path in blobs.values()} == acknowledged
    # One data set that came under two names of the request is one row.
    rows = {row.blob_sha256 for row in Intake(listener.root).instances()}
    assert {sha256(dataset_bytes(blobs[digest].read_bytes())) for digest in rows} == acknowledged
    assert listener.peak_mib() < 512
    assert echoes(listener.port)


def told(root: Path) -> dict[str, tuple[str, ...]]:
    """By digest, what each image of the catalog was taken for."""
    with Intake(root).database.read() as session:
        rows = session.exec(
            select(InstanceRow, SeriesRow, StudyRow)
            .join(SeriesRow, col(InstanceRow.series_id) == col(SeriesRow.id))
            .join(StudyRow, col(InstanceRow.study_id) == col(StudyRow.id))
        ).all()
    return {
        image.blob_sha256: (study.study_uid, series.series_uid, image.sop_uid, image.sop_class_uid)
        for image, series, study in rows
    }


def read_back(root: Path, again: Path) -> None:
    """The images that the killed listener of `root` has answered, as if it had been killed before they were rows.

    None is set aside, and each is of the study, of the series and under the UID that it had.
    """
    ready = again / "spool" / "ready"
    ready.mkdir(parents=True)
    shutil.copytree(root / "spool" / "intakes", again / "spool" / "intakes")
    for row in Intake(root).instances():
        blob = root / "blobs" / row.blob_sha256[:2] / row.blob_sha256
        (ready / f"{row.spool_name}.{row.blob_sha256}.dcm").hardlink_to(blob)
    with running(again, idle_s=600) as listener:
        wait_for(lambda: listener.status()["spool"] == 0, 60, "all that was in the spool to be rows")
        status = listener.status()
    assert status["quarantined"] == 0
    assert status["errors"] == {}
    assert told(again) == told(root) != {}


def test_300_mutants_are_answered(folder: Path) -> None:
    """Check 17 of the reliability list with 300 of its files; those read back after a kill are what they were."""
    found = mutants(300)
    assert read_all(found) < HANG_S
    with running(folder / "data", idle_s=600) as listener:
        offer_all(listener, found)
        listener.kill()
        read_back(listener.root, folder / "again")


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_5000_mutants_are_answered_in_180_s(folder: Path) -> None:
    """Check 17 of the reliability list: 5,000 from 6 seeds in 180 s, 0 deaths, 0 hangs over 2 s, RSS under 512 MiB."""
    found = mutants(5000)
    began, cpu = time.monotonic(), time.process_time()
    assert read_all(found) < HANG_S
    with running(folder / "data", idle_s=600) as listener:
        offer_all(listener, found)
        took, spent = time.monotonic() - began, time.process_time() - cpu + listener.cpu_s()
        print(f"{took:.0f} s, {spent:.0f} s of CPU, peak {listener.peak_mib():.0f} MiB")
        listener.kill()
        read_back(listener.root, folder / "again")
    assert took < IN_ALL_S
    assert spent < CPU_S


def conversation(body: bytes) -> bytes:
    """A whole association as bytes: request, C-STORE with its data set, release."""
    command = command_set(0x0001, 1, sop_class=CT, sop_instance="1.2.3.4", data_set=True)
    return b"".join(
        (
            associate_rq({3: (CT, (str(ExplicitVRLittleEndian),))}),
            pdata(3, 3, command),
            pdata(3, 2, body),
            b"\x05\x00\x00\x00\x00\x04\x00\x00\x00\x00",
        )
    )


def closed_within(port: int, content: bytes) -> float:
    """Seconds until the listener had ended a connection that sends just these bytes."""
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", port), timeout=60) as peer:
        try:
            peer.sendall(content)
            peer.shutdown(socket.SHUT_WR)
            while peer.recv(65_536):
                pass
        except ConnectionError:
            pass
    return time.monotonic() - began


@pytest.mark.parametrize("count", [150, pytest.param(2000, marks=pytest.mark.slow)])
def test_damaged_conversations_end_at_once(folder: Path, count: int) -> None:
    """Check 17 of the reliability list for the protocol: also PDUs and command sets may be damaged anywhere."""
    (body, *_) = [dataset_bytes(content) for content in series_in(SEEDS[0])]
    whole = conversation(body)
    with running(folder / "data", idle_s=600, max_associations_per_address=64) as listener:
        for seed in range(count):
            rng = np.random.default_rng([18, seed])
            mutant = damaged(bytes(132) + whole, rng)[132:]
            took = closed_within(listener.port, mutant)
            tries = 1
            while took > HANG_S and tries < TRIES:
                took, tries = min(took, closed_within(listener.port, mutant)), tries + 1
            assert took < HANG_S, f"mutant {seed}"
        wait_for(lambda: listener.status()["open"] == 0, 30, "all associations to be forgotten")
        status = listener.status()
        assert status["errors"] == {}
        assert status["counts"].get("cut.broken", 0) == 0
        assert echoes(listener.port)
        assert listener.peak_mib() < 512
