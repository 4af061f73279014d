"""Both backends of the listener run through the same tests, the one of the wire with one and with two processes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from tests.support.intake import Intake


class MakeIntake(Protocol):
    def __call__(self, root: Path, **changes: object) -> Intake: ...


BACKENDS: dict[str, dict[str, object]] = {
    "wire": {"listener_processes": 1},
    "wire, two processes": {"listener_processes": 2},
    "wire, here": {"listener_processes": 0},
    "pynetdicom": {"dicom_backend": "pynetdicom"},
}


LONG = pytest.mark.parametrize(
    "make_intake", ["wire", pytest.param("pynetdicom", marks=pytest.mark.slow)], indirect=True
)
"""For a test that waits for seconds: `make test-all` runs it with the reference backend too."""


def _maker(backend: str) -> MakeIntake:
    def make(root: Path, **changes: object) -> Intake:
        return Intake(root, **{**BACKENDS[backend], **changes})

    return make


@pytest.fixture(params=["wire", pytest.param("wire, two processes", marks=pytest.mark.slow), "pynetdicom"])
def make_intake(request: pytest.FixtureRequest) -> MakeIntake:
    """An installation whose listener has the backend of this run."""
    return _maker(request.param)


@pytest.fixture
def intake(tmp_path: Path, make_intake: MakeIntake) -> Intake:
    return make_intake(tmp_path / "data")


@pytest.fixture(params=["wire, here", "pynetdicom"])
def make_near_intake(request: pytest.FixtureRequest) -> MakeIntake:
    """As `make_intake`, where everything runs in this process: for what a test must reach into."""
    return _maker(request.param)


@pytest.fixture
def near_intake(tmp_path: Path, make_near_intake: MakeIntake) -> Intake:
    return make_near_intake(tmp_path / "data")
