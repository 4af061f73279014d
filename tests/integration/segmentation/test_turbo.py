"""Turbo against exact: the same labels on the demo's phantoms, and exact mode by name wherever that cannot be had."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.forward import watched
from bench.phantoms import chest_and_abdomen
from heimdallr_ray.metrics.context import MetricContext
from heimdallr_ray.metrics.gates import Quantity, provenance_of
from heimdallr_ray.segmentation.demo import phantom, weights_dir
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, FIRST_PASS, TISSUE_TYPES, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg import recipe, turbo
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.totalseg.model import ResidentModel
from heimdallr_ray.segmentation.totalseg.recipe import Recipe
from heimdallr_ray.segmentation.totalseg.turbo import LEAST_DICE, TRIED_ON, worst_dice
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


def torso(seed: int) -> Volume:
    return volume_of(phantom.make(seed, (3.0, 3.0, 3.0), (180.0, 340.0)))


def head(seed: int) -> Volume:
    return volume_of(phantom.make(seed, (1.0, 1.0, 2.5), (608.0, 798.0), bleed_ml=(25.0,), fov_mm=(224, 256)))


def other_phantom(_seed: int) -> Volume:
    """A trunk that is drawn otherwise than the phantoms that the nets were trained on and turbo tries its steps on."""
    hu, affine = chest_and_abdomen(60)
    return Volume(np.asfortranarray(hu[::4, ::4]), affine @ np.diag([4.0, 4.0, 4.8, 1.0]), VolumeSource("CT"))


@pytest.fixture
def saves_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is taken that leaves the labels as they are, however busy this machine is."""
    monkeypatch.setattr(turbo, "MODEL_S", 1e9)
    monkeypatch.setattr(turbo, "START_SHARE", 1e9)
    monkeypatch.setattr(turbo, "LEAST_SAVING", -1e9)


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps of an accelerator that a CPU can take too."""
    steps = {name: one for name, one in recipe.steps_for(torch.device("cuda")).items() if "tiles" not in name}
    monkeypatch.setattr(turbo, "steps_for", lambda _device: steps)


@pytest.mark.usefixtures("saves_time")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("task", "image", "seed"),
    [
        pytest.param(TOTAL_FAST, torso, 7, marks=pytest.mark.slow),
        pytest.param(TOTAL_FAST, other_phantom, 0, marks=pytest.mark.slow),
        pytest.param(TISSUE_TYPES, torso, 4099, marks=pytest.mark.slow),
        (CEREBRAL_BLEED, head, 31),
    ],
)
def test_every_label_of_the_demo_weights_is_that_of_exact_mode(
    device: str, task: str, image: Callable[[int], Volume], seed: int
) -> None:
    assert seed != TRIED_ON, "what the steps were chosen by proves nothing"
    shown = image(seed)
    exact = ResidentEngine(weights_dir(), device).segment(shown, task).label_map
    engine = ResidentEngine(weights_dir(), device, mode="turbo")
    made = engine.segment(shown, task).label_map
    worst = worst_dice(exact.array, made.array)
    assert worst is not None
    assert worst[1] >= LEAST_DICE, f"label {worst[0]}"
    assert exact.model.mode == "exact"
    assert made.model.mode == "turbo", engine.info().notes
    assert engine.info().turbo
    if device == "cpu":
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


LAST = recipe.steps_for(torch.device("cpu"))["channels_last_3d"]


def two_at_once(made: Recipe) -> Recipe:
    return replace(made, tiles=2)


def sums_as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    """nnU-Net's own operations: the sums of the host's own take tiles one by one."""
    build = ResidentModel.__init__

    def built(self: ResidentModel, *args: object) -> None:
        build(self, *args)  # type: ignore[arg-type]
        self._ring = None  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(ResidentModel, "__init__", built)


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
    assert "turbo.fell_back" in caplog.messages


@pytest.mark.usefixtures("saves_time")
def test_what_was_tried_and_not_taken_is_told_of_a_model_that_is_faster_too(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turbo, "steps_for", lambda _device: {"channels_last_3d": LAST, "2 tiles at once": two_at_once})
    calls_by(monkeypatch, lambda how, logits: logits.roll(1, 1) if how.tiles > 1 else logits)
    engine = ResidentEngine(registry, threads=1, mode="turbo")
    engine.warm_up()
    assert engine.info().turbo == {"totalsegmentator/298": ("channels_last_3d",)}
    (note,) = engine.info().notes
    assert note.startswith("totalsegmentator/298: runs by channels_last_3d (channels_last_3d: kept, ")
    assert "; 2 tiles at once: changes labels: Dice" in note


@pytest.mark.usefixtures("saves_time")
@pytest.mark.parametrize("device", DEVICES)
def test_tiles_at_once_give_the_labels_of_one_after_the_other(
    registry: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    affine = np.diag([-6.0, -6.0, 6.0, 1.0])
    image = Volume(identity_nets.body((60, 36, 90), affine), affine, VolumeSource("CT", synthetic=True))
    alone: list[int] = []
    with watched(before=lambda tiles: alone.append(len(tiles))):
        exact = ResidentEngine(registry, device, threads=1).segment(image, FIRST_PASS).label_map
    assert set(alone) == {1} and len(alone) > 4 and len(alone) % 4, "the last ones have to be filled up"
    if device == "cpu":
        sums_as_on_an_accelerator(monkeypatch)
    steps = {"4 tiles at once": recipe.steps_for(torch.device("cuda"))["4 tiles at once"]}
    monkeypatch.setattr(turbo, "steps_for", lambda _device: steps)
    engine = ResidentEngine(registry, device, threads=1, mode="turbo")
    engine.warm_up()
    assert engine.info().turbo == {"totalsegmentator/298": ("4 tiles at once",)}
    shown: list[int] = []
    with watched(before=lambda tiles: shown.append(len(tiles))):
        made = engine.segment(image, FIRST_PASS).label_map
    assert shown == [4] * math.ceil(len(alone) / 4)
    worst = worst_dice(exact.array, made.array)
    assert worst is not None
    assert worst[1] >= LEAST_DICE, f"label {worst[0]}"


def test_a_step_that_saves_nothing_is_not_taken(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turbo, "LEAST_SAVING", 1.0)
    engine = ResidentEngine(registry, threads=1, mode="turbo")
    engine.warm_up()
    assert engine.info().turbo == {}
    assert "channels_last_3d: saves nothing" in engine.info().notes[0]


@pytest.mark.slow
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


@pytest.mark.slow
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
