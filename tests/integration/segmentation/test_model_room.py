"""A replica whose device holds fewer models than are installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from heimdallr_ray.segmentation.tasks import FIRST_PASS, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.totalseg.model import ResidentModel
from heimdallr_ray.volume import Volume, VolumeSource
from tests.integration.segmentation import identity_nets

pytestmark = pytest.mark.timeout(300)

AFFINE = np.diag([-6.0, -6.0, 6.0, 1.0])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return identity_nets.write_registry(tmp_path_factory.mktemp("weights"), (FIRST_PASS, TOTAL_FAST))


@pytest.fixture
def engine(registry: Path) -> ResidentEngine:
    return ResidentEngine(registry, threads=1)


@pytest.fixture
def image() -> Volume:
    return Volume(identity_nets.body((24, 22, 20), AFFINE), AFFINE, VolumeSource("CT", synthetic=True))


def loaded(engine: ResidentEngine) -> list[str]:
    return [model.model_id.rpartition("/")[2] for model in engine.info().models]


def holds_one_model(monkeypatch: pytest.MonkeyPatch, engine: ResidentEngine) -> None:
    """The device is full once a model is on it."""
    move = torch.nn.Module.to

    def to(self: torch.nn.Module, *args: object) -> torch.nn.Module:
        if loaded(engine):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return move(self, *args)  # type: ignore[call-overload]

    monkeypatch.setattr(torch.nn.Module, "to", to)


def test_the_model_used_longest_ago_gives_place(
    engine: ResidentEngine, image: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    holds_one_model(monkeypatch, engine)
    engine.warm_up()
    assert loaded(engine) == ["297"]
    rough = engine.segment(image, FIRST_PASS)
    assert loaded(engine) == ["298"] and rough.steps == ()
    assert engine.segment(image, TOTAL_FAST).steps == ()
    assert loaded(engine) == ["297"]


def test_where_there_is_room_both_stay(engine: ResidentEngine) -> None:
    engine.warm_up()
    assert sorted(loaded(engine)) == ["297", "298"]


def test_a_model_that_does_not_fit_alone_is_named_and_the_others_are_ready(
    engine: ResidentEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tile = ResidentModel._tile  # pyright: ignore[reportPrivateUsage]

    def full(self: ResidentModel, shown: torch.Tensor) -> torch.Tensor:
        if self.spec.dataset_id == 298:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tile(self, shown)

    monkeypatch.setattr(ResidentModel, "_tile", full)
    engine.warm_up()
    assert loaded(engine) == ["297"]
    named = [record for record in caplog.records if record.message == "model.does_not_fit"]
    assert [record.__dict__["model"] for record in named] == ["totalsegmentator/298"]


def test_other_models_leave_before_a_study_is_run_in_another_way(
    engine: ResidentEngine, image: Volume, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = engine.segment(image, FIRST_PASS).label_map.array
    engine.warm_up()
    tile = ResidentModel._tile  # pyright: ignore[reportPrivateUsage]

    def full_beside_another(self: ResidentModel, shown: torch.Tensor) -> torch.Tensor:
        if len(loaded(engine)) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return tile(self, shown)

    monkeypatch.setattr(ResidentModel, "_tile", full_beside_another)
    again = Volume(image.array, AFFINE, image.source)
    made = engine.segment(again, FIRST_PASS)
    assert made.steps == () and loaded(engine) == ["298"]
    np.testing.assert_array_equal(made.label_map.array, expected)
