"""An image that was answered and of which its association cannot tell: the listener looks for it before it closes."""

from __future__ import annotations

from pathlib import Path

import pytest

from heimdallr_ray.errors import StorageFailed
from heimdallr_ray.listener.writer import SpoolEntry, SpoolWriter
from tests.support.intake import Intake, ct_slice, dataset_bytes, file_bytes, wait_for
from tests.support.wirepeer import WirePeer

STUDY = "1.2.826.0.1.3680043.9.9.71"


def test_what_cannot_be_told_is_looked_for_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its digest is lost to an error of the disk after Success; the minute until the next look is not waited for."""
    real, failures = SpoolWriter.entry, 0

    def entry(writer: SpoolWriter) -> SpoolEntry:
        nonlocal failures
        failures += 1
        if failures == 2:
            raise StorageFailed("it cannot be renamed")
        return real(writer)

    monkeypatch.setattr(SpoolWriter, "entry", entry)
    intake = Intake(tmp_path / "data", listener_processes=0)
    with intake.listening() as service:
        with WirePeer(service.scp.port) as peer:
            for n in range(3):
                body = dataset_bytes(file_bytes(ct_slice(n, STUDY, f"{STUDY}.7", size=8)))
                assert peer.store(body, f"{STUDY}.7.{n}") == 0
        assert failures == 3
        # Adoption of files that nobody has in hand begins after a minute.
        wait_for(lambda: len(intake.instances()) == 3, 20, "the third row")
