"""A stack is started on a disk that is too full for images: everything but the doors works, and both say why."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support import dicom as synthetic
from tests.support.stack import Stack

pytestmark = [pytest.mark.timeout(600), pytest.mark.slow]


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Stack]:
    made = Stack(tmp_path / "data")
    made.overrides = {"HEIMDALLR_DISK_WARN_PERCENT": "0.01", "HEIMDALLR_DISK_REFUSE_PERCENT": "0.02"}
    yield made
    made.clean_up()


def test_a_full_disk_closes_the_doors_and_nothing_else(full: Stack, tmp_path: Path) -> None:
    full.start()
    assert httpx.get(f"{full.url}/api/v1/studies", timeout=30).status_code == 200
    ready = httpx.get(f"{full.url}/api/v1/ready", timeout=30).json()
    assert [check["name"] for check in ready["checks"] if not check["ok"]] == ["disk"]
    for index, content in enumerate(synthetic.ct_study(2, shape=(16, 16), spacing_mm=4.0)):
        (tmp_path / f"{index}.dcm").write_bytes(content)
    refused = full.run("send", str(tmp_path / "0.dcm"), "--port", str(full.dicom_port))
    assert refused.returncode != 0
    assert "too full" in refused.stdout + refused.stderr
    lasting = full.wait_for(lambda: full.state() == "degraded", 180, "the supervisor to tell of the disk")
    assert lasting
    assert "storage_full" in full.run("status").stdout
