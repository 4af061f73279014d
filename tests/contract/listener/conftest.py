"""Both backends of the listener run through the same tests."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest

from tests.support.intake import Intake


class MakeIntake(Protocol):
    def __call__(self, root: Path, **changes: object) -> Intake: ...


@pytest.fixture(params=["wire", "pynetdicom"])
def make_intake(request: pytest.FixtureRequest) -> MakeIntake:
    """An installation whose listener has the backend of this run."""

    def make(root: Path, **changes: object) -> Intake:
        return Intake(root, dicom_backend=request.param, **changes)

    return make


@pytest.fixture
def intake(tmp_path: Path, make_intake: MakeIntake) -> Intake:
    return make_intake(tmp_path / "data")
