"""Turbo against exact: the same labels on the demo's phantoms, and exact mode by name wherever that cannot be had."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, provenance_of
from heimdallr_ray.segmentation.demo import phantom, weights_dir
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, FIRST_PASS, TISSUE_TYPES, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg import recipe, store, turbo
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.totalseg.model import ResidentModel
from heimdallr_ray.segmentation.totalseg.recipe import Recipe
from heimdallr_ray.segmentation.totalseg.turbo import LEAST_DICE, worst_dice
from heimdallr_ray.volume import LabelMap, Volume, VolumeSource
from tests.integration.segmentation import identity_nets

pytestmark = pytest.mark.timeout(600)
DEVICES = [
    "cpu",
    pytest.param(
        "cuda", marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")]
    ),
]


def volume_of(body: phantom.Phantom) -> Volume:
    return Volume(body.hu, body.affine_ras, VolumeSource("CT", synthetic=True))


def torso() -> Volume:
    return volume_of(phantom.make(2001, (3.0, 3.0, 3.0), (180.0, 340.0)))


def head() -> Volume:
    return volume_of(phantom.make(2001, (1.0, 1.0, 2.5), (608.0, 798.0), bleed_ml=(30.0,), fov_mm=(224, 256)))


@pytest.fixture
def saves_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is taken that leaves the labels as they are, however busy this machine is."""
    monkeypatch.setattr(store, "TUNING_S", 1e9)
    monkeypatch.setattr(turbo, "LEAST_SAVING", -1e9)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of an accelerator that a CPU can take too."""
    steps = {name: one for name, one in recipe.steps_for(torch.device("cuda")).items() if "tiles" not in name}
    monkeypatch.setattr(turbo, "steps_for", lambda _device: steps)


@pytest.mark.usefixtures("saves_time")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("task", "image"), [(TOTAL_FAST, torso), (TISSUE_TYPES, torso), (CEREBRAL_BLEED, head)])
def test_every_label_of_the_demo_weights_is_that_of_exact_mode(
    device: str, task: str, image: Callable[[], Volume]
) -> None:
    shown = image()
    exact = ResidentEngine(weights_dir(), device).segment(shown, task).label_map
    engine = ResidentEngine(weights_dir(), device, mode="turbo")
    made = engine.segment(shown, task).label_map
    worst = worst_dice(exact.array, made.array)
    assert worst is not None
    assert worst[1] >= LEAST_DICE, f"label {worst[0]}"
    assert exact.model.mode == "exact"
    if device == "cpu":
        # an accelerator's half precision may leave no step that keeps every label, and then says so
        assert made.model.mode == "turbo"
        assert all(steps == ("channels_last_3d",) for steps in engine.info().turbo.values())


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return identity_nets.write_registry(tmp_path_factory.mktemp("weights"), (FIRST_PASS,))


@pytest.fixture(scope="module")
def image() -> Volume:
    affine = np.diag([-6.0, -6.0, 6.0, 1.0])
    return Volume(identity_nets.body((40, 36, 66), affine), affine, VolumeSource("CT", synthetic=True))


@pytest.fixture(scope="module")
def exact(registry: Path, image: Volume) -> LabelMap:
    return ResidentEngine(registry, threads=1).segment(image, FIRST_PASS).label_map


def calls_by(monkeypatch: pytest.MonkeyPatch, change: Callable[[Recipe, torch.Tensor], torch.Tensor]) -> None:
    """What a network says passes through `change`, which is told how it was called."""
    call = recipe.Caller.__call__

    def changed(self: recipe.Caller, tiles: torch.Tensor) -> torch.Tensor:
        return change(self.recipe, call(self, tiles))

    monkeypatch.setattr(recipe.Caller, "__call__", changed)


@pytest.mark.usefixtures("saves_time")
def test_a_step_that_changes_labels_leaves_the_model_exact_and_is_named(
    registry: Path, image: Volume, exact: LabelMap, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    calls_by(monkeypatch, lambda how, logits: logits.roll(1, 1) if how.channels_last else logits)
    engine = ResidentEngine(registry, threads=1, mode="turbo")
    engine.warm_up()
    made = engine.segment(image, FIRST_PASS).label_map
    np.testing.assert_array_equal(made.array, exact.array)
    assert made.model == exact.model
    info = engine.info()
    assert (info.mode, info.turbo) == ("turbo", {})
    assert any("totalsegmentator/298" in note and "channels_last_3d: changes labels" in note for note in info.notes)
    assert "turbo falls back to exact" in caplog.messages


def test_a_step_that_saves_nothing_is_not_taken(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turbo, "LEAST_SAVING", 1.0)
    engine = ResidentEngine(registry, threads=1, mode="turbo")
    engine.warm_up()
    assert engine.info().turbo == {}
    assert "channels_last_3d: saves nothing" in engine.info().notes[0]


@pytest.mark.usefixtures("saves_time", "compiled")
def test_a_compiled_model_gives_the_same_labels(registry: Path, image: Volume, exact: LabelMap, tmp_path: Path) -> None:
    torch.compiler.reset()
    engine = ResidentEngine(registry, threads=1, mode="turbo", compile_dir=tmp_path / "compiled")
    made = engine.segment(image, FIRST_PASS).label_map
    assert engine.info().turbo == {"totalsegmentator/298": ("channels_last_3d", "compile")}
    assert list((tmp_path / "compiled").rglob("*.so"))
    worst = worst_dice(exact.array, made.array)
    assert worst is not None
    assert worst[1] >= LEAST_DICE


@pytest.mark.usefixtures("saves_time", "compiled")
def test_without_a_compiler_the_model_goes_on_by_the_other_steps_and_says_so(
    registry: Path, image: Volume, exact: LabelMap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # torch looks for a compiler once per process: nothing is compiled after this test
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", (str(tmp_path / "no-such-compiler"),))
    torch.compiler.reset()
    engine = ResidentEngine(registry, threads=1, mode="turbo", compile_dir=tmp_path / "compiled")
    engine.warm_up()
    assert engine.info().turbo == {"totalsegmentator/298": ("channels_last_3d",)}
    made = engine.segment(image, FIRST_PASS).label_map
    worst = worst_dice(exact.array, made.array)
    assert worst is not None
    assert worst[1] >= LEAST_DICE
    assert made.model.mode == "turbo"


@pytest.mark.usefixtures("saves_time")
def test_numbers_name_the_mode_of_their_models(registry: Path, image: Volume, exact: LabelMap) -> None:
    made = ResidentEngine(registry, threads=1, mode="turbo").segment(image, FIRST_PASS).label_map
    quantity = Quantity("x", 1, "mL", ("total",))
    assert provenance_of(MetricContext(image, {"total": made}), quantity).mode == "turbo"
    assert provenance_of(MetricContext(image, {"total": exact}), quantity).mode == "exact"


@pytest.mark.usefixtures("saves_time")
def test_a_phantom_that_shows_a_model_nothing_proves_nothing(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ResidentModel, "tile_labels", lambda _model, tile: np.zeros(tile.shape[2:], np.uint8))
    engine = ResidentEngine(registry, threads=1, mode="turbo")
    engine.warm_up()
    assert engine.info().turbo == {}
    assert "nothing was compared" in engine.info().notes[0]
