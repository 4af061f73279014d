"""The road of an accelerator, with the host in its place where there is none: labels are those of exact mode."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from heimdallr_ray.errors import OutOfMemory
from heimdallr_ray.segmentation.tasks import CEREBRAL_BLEED, FIRST_PASS
from heimdallr_ray.segmentation.totalseg import memory
from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine
from heimdallr_ray.segmentation.totalseg.memory import Road, Sums
from heimdallr_ray.segmentation.totalseg.model import ResidentModel
from heimdallr_ray.segmentation.totalseg.ondevice import Uploads
from heimdallr_ray.volume import Volume, VolumeSource
from tests.integration.segmentation import identity_nets

pytestmark = pytest.mark.timeout(300)
TASKS = (FIRST_PASS, "vertebrae_body", "trunk_cavities", CEREBRAL_BLEED)
AFFINE = np.array([[-2.4, 0, 0, 40], [0, -2.4, 0, 40], [0, 0, 4.0, -60], [0, 0, 0, 1.0]])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return identity_nets.write_registry(tmp_path_factory.mktemp("weights"), TASKS)


def volume(dtype: type = np.int16) -> Volume:
    array = identity_nets.body((44, 40, 30), AFFINE)
    # an empty margin, which is cut off before a model sees the image
    array[:, :, :4] = 0
    array = array.astype(dtype) + (dtype(0.25) if dtype is np.float32 else dtype(0))
    return Volume(array, AFFINE, VolumeSource("CT", synthetic=True))


def accelerated(engine: ResidentEngine, monkeypatch: pytest.MonkeyPatch) -> Uploads:
    """The engine treats the host as an accelerator: uploads, and nnU-Net's own operations with sums where they are."""
    store = engine._store  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(store, "_uploading", True)
    build = ResidentModel.__init__

    def built(self: ResidentModel, *args: object) -> None:
        build(self, *args)  # type: ignore[arg-type]
        self._ring = None  # pyright: ignore[reportPrivateUsage]

    monkeypatch.setattr(ResidentModel, "__init__", built)
    return store._uploads  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_labels_are_those_of_the_host(registry: Path, monkeypatch: pytest.MonkeyPatch, dtype: type) -> None:
    shown = volume(dtype)
    plain = ResidentEngine(registry, threads=1)
    expected = {task: plain.segment(shown, task).label_map.array for task in TASKS}
    engine = ResidentEngine(registry, threads=1)
    accelerated(engine, monkeypatch)
    again = Volume(shown.array, AFFINE, shown.source)
    for task in TASKS:
        np.testing.assert_array_equal(engine.segment(again, task).label_map.array, expected[task])
    assert all(labels.any() for labels in expected.values())


def test_models_of_one_spacing_share_one_upload(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ResidentEngine(registry, threads=1)
    uploads = accelerated(engine, monkeypatch)
    shown = volume()
    for task in ("vertebrae_body", "trunk_cavities"):
        engine.segment(shown, task)
    assert uploads.copied == 1
    engine.segment(shown, FIRST_PASS)
    assert uploads.copied == 2


def test_a_model_that_nnunet_resamples_for_takes_the_host(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ResidentEngine(registry, threads=1)
    uploads = accelerated(engine, monkeypatch)
    shown = volume()
    engine.segment(shown, FIRST_PASS)
    engine.segment(shown, CEREBRAL_BLEED)
    assert uploads.copied == 1


def test_copied_images_are_given_up_before_a_model_is(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ResidentEngine(registry, threads=1)
    uploads = accelerated(engine, monkeypatch)
    shown = volume()
    engine.segment(shown, FIRST_PASS)
    build = ResidentModel.__init__

    def full_beside_an_image(self: ResidentModel, *args: object) -> None:
        if uploads.held:
            raise OutOfMemory("full")
        build(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ResidentModel, "__init__", full_beside_an_image)
    assert uploads.held == 1
    engine.segment(shown, "trunk_cavities")
    assert sorted(one.model_id for one in engine.info().models) == ["totalsegmentator/298", "totalsegmentator/343"]


def test_an_image_of_the_device_is_given_up_before_another_road_is_taken(
    registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = ResidentEngine(registry, threads=1)
    uploads = accelerated(engine, monkeypatch)
    roads: list[tuple[Sums, bool, int]] = []
    predict = ResidentModel.predict

    def full_at_first(self: ResidentModel, *args: object) -> object:
        there = uploads.held
        roads.append((args[2], args[3] is not None, there))  # type: ignore[arg-type]
        if len(roads) == 1:
            raise OutOfMemory("full")
        return predict(self, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(ResidentModel, "predict", full_at_first)
    monkeypatch.setattr(memory, "roads", lambda **_: (Road.WHOLE, Road.PLANES))
    engine.segment(volume(), FIRST_PASS)
    assert roads == [(Sums.DEVICE, True, 1), (Sums.RING, False, 0)]
