"""What the engine refuses, what it does differently from upstream on purpose, and what tasks of one study share."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from heimdallr_ray.errors import (
    EmptyImage,
    LicenceRequired,
    ModalityNotSupported,
    NotAVolume,
    NotFound,
    WeightsMissing,
    WeightsTampered,
)
from heimdallr_ray.segmentation.engine import SegmentationEngine
from heimdallr_ray.segmentation.planner import LeftOutCode
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, FIRST_PASS, TASKS, TISSUE_TYPES, TOTAL_FAST
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.weights import write_manifest
from heimdallr_ray.volume import Volume, VolumeSource, same_grid
from tests.integration.segmentation import identity_nets

pytestmark = pytest.mark.timeout(600)

INSTALLED = (FIRST_PASS, TOTAL_FAST, TISSUE_TYPES, CEREBRAL_BLEED)
AFFINE = np.diag([-2.4, -2.4, 4.0, 1.0])
SHAPE = (40, 36, 30)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # no bias: the random 6 mm model sees no brain
    return identity_nets.write_registry(tmp_path_factory.mktemp("weights"), INSTALLED, brain_bias=-5.0)


@pytest.fixture(scope="module")
def engine(registry: Path) -> Iterator[ResidentEngine]:
    made = ResidentEngine(registry, threads=1)
    made.warm_up()
    yield made


def volume(array: np.ndarray | None = None, modality: str = "CT") -> Volume:
    image = identity_nets.body(SHAPE, AFFINE) if array is None else array
    return Volume(image, AFFINE, VolumeSource(modality, manifest_sha256="a" * 64, synthetic=True))


def test_it_is_a_segmentation_engine_and_says_what_it_is(engine: SegmentationEngine) -> None:
    info = engine.info()
    assert info.available_tasks == info.licensed_tasks == INSTALLED
    assert info.synthetic and info.threads == 1 and info.device == "cpu"
    assert [model.model_id for model in info.models] == [
        f"totalsegmentator/{number}" for number in (298, 297, 481, 150)
    ]


def test_labels_are_on_the_grid_of_the_volume_and_carry_their_model(engine: ResidentEngine, registry: Path) -> None:
    image = volume()
    label_map = engine.segment(image, TOTAL_FAST).label_map
    assert same_grid(image, label_map)
    assert label_map.array.dtype == np.uint8 and label_map.array.flags.c_contiguous
    assert label_map.labels[5] == "liver" and label_map.source_manifest_sha256 == "a" * 64
    files = json.loads((registry / "manifest.json").read_text())["files"]
    checkpoint = TASKS[TOTAL_FAST].models[0].checkpoint
    assert label_map.model.weights_sha256 == files[checkpoint]["sha256"]
    assert label_map.model.synthetic and label_map.model.backend == "resident" and label_map.model.task == "total"


def test_a_read_only_volume_gives_the_same_labels(engine: ResidentEngine) -> None:
    image = volume()
    expected = engine.segment(image, TISSUE_TYPES).label_map.array
    frozen = image.array.copy()
    frozen.setflags(write=False)
    assert np.array_equal(engine.segment(volume(frozen), TISSUE_TYPES).label_map.array, expected)


def test_float_values_are_truncated_like_upstreams_int32(engine: ResidentEngine) -> None:
    whole = identity_nets.body(SHAPE, AFFINE)
    as_float = engine.segment(volume(whole.astype(np.float32)), TOTAL_FAST).label_map.array
    assert np.array_equal(as_float, engine.segment(volume(whole), TOTAL_FAST).label_map.array)


def test_without_the_structure_to_crop_to_nothing_is_predicted(engine: ResidentEngine) -> None:
    """Upstream goes on with the whole volume here and would report a bleed in an abdomen."""
    image = volume()
    assert not engine.segment(image, FIRST_PASS).label_map.mask("brain").any()
    bleed = engine.segment(image, CEREBRAL_BLEED)
    assert not bleed.label_map.array.any()
    assert same_grid(image, bleed.label_map)
    assert bleed.timings.forward_s == 0.0


def test_tasks_of_one_study_share_their_work(engine: ResidentEngine) -> None:
    image = volume()
    rough = engine.segment(image, FIRST_PASS)
    assert rough.timings.forward_s > 0
    assert engine.segment(image, FIRST_PASS) is rough
    assert engine.segment(image, CEREBRAL_BLEED).timings.forward_s == 0.0
    assert engine.segment(volume(), FIRST_PASS) is not rough


def test_a_run_says_what_it_left_out(engine: ResidentEngine) -> None:
    run = engine.run_plan(volume())
    assert TOTAL_FAST in run.segmentations
    assert {left.task: left.code for left in run.plan.left_out}[CEREBRAL_BLEED] == LeftOutCode.ANATOMY_ABSENT
    assert set(run.plan.run) == set(run.segmentations)
    assert run.timings.forward_s >= run.segmentations[TOTAL_FAST].timings.forward_s
    assert 0 <= run.timings.outside_forward_s < run.timings.total_s


@pytest.mark.parametrize("value", [0, -1000, 42])
def test_an_image_of_one_value_is_refused(engine: ResidentEngine, value: int) -> None:
    with pytest.raises(EmptyImage):
        engine.segment(volume(np.full(SHAPE, value, np.int16)), TOTAL_FAST)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(engine: ResidentEngine, bad: float) -> None:
    image = identity_nets.body(SHAPE, AFFINE).astype(np.float32)
    image[3, 4, 5] = bad
    with pytest.raises(NotAVolume):
        engine.segment(volume(image), TOTAL_FAST)


def test_other_modalities_and_tasks_are_refused(engine: ResidentEngine) -> None:
    with pytest.raises(ModalityNotSupported):
        engine.run_plan(volume(modality="MR"))
    with pytest.raises(ModalityNotSupported):
        engine.segment(volume(modality="MR"), TOTAL_FAST)
    with pytest.raises(NotFound):
        engine.segment(volume(), "heart_of_gold")


def test_a_model_that_is_not_installed_is_named(engine: ResidentEngine) -> None:
    with pytest.raises(WeightsMissing, match="Dataset291_TotalSegmentator_part1_organs_1559subj"):
        engine.segment(volume(), "total")


def real_registry(folder: Path) -> Path:
    """A registry without any marker of ours, as an imported set of TotalSegmentator's weights would be."""
    identity_nets.write_registry(folder, (FIRST_PASS, TISSUE_TYPES))
    for file in folder.glob("*/*/dataset.json"):
        file.write_text(file.read_text().replace("SYNTHETIC random weights", "tissue types"))
    write_manifest(folder, synthetic=False)
    return folder


def test_a_licensed_task_needs_a_licence_unless_its_weights_are_ours(tmp_path: Path) -> None:
    folder = real_registry(tmp_path)
    without = ResidentEngine(folder, threads=1)
    assert without.available_tasks == (FIRST_PASS, TISSUE_TYPES)
    assert without.licensed_tasks == (FIRST_PASS,)
    with pytest.raises(LicenceRequired):
        without.segment(volume(), TISSUE_TYPES)
    site = ResidentEngine(folder, threads=1, licensed=True)
    assert TISSUE_TYPES in site.licensed_tasks
    assert site.segment(volume(), TISSUE_TYPES).model.synthetic is False


def test_a_changed_byte_never_reaches_torch(tmp_path: Path) -> None:
    folder = identity_nets.write_registry(tmp_path, (FIRST_PASS,))
    engine = ResidentEngine(folder, threads=1)
    checkpoint = folder / TASKS[FIRST_PASS].models[0].checkpoint
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    with pytest.raises(WeightsTampered):
        engine.segment(volume(), FIRST_PASS)
    with pytest.raises(WeightsTampered):
        ResidentEngine(folder, threads=1)


def test_upstreams_settings_are_private_and_silent(registry: Path, tmp_path: Path) -> None:
    ResidentEngine(registry, threads=1, home_dir=tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["send_usage_stats"] is False
    assert "license_number" not in config
