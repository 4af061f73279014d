"""Studies that are no volume, on the road from stored objects to the engine's door: a typed refusal within a second."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom.uid import JPEG2000Lossless

from heimdallr_ray.dicom import isolated
from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.isolated import DecoderPool
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import Override, group
from heimdallr_ray.errors import EmptyImage, HeimdallrError, NotAVolume, NoUsableSeries
from heimdallr_ray.ids import Uid
from heimdallr_ray.pipelines import steps
from heimdallr_ray.segmentation.totalseg.kernels import Slabs
from heimdallr_ray.segmentation.totalseg.study import Study
from heimdallr_ray.volume import Volume
from tests.support.bounds import within
from tests.support.dicom import ct_datasets, ct_study, indexed, set_pixels, to_bytes


def prepared(folder: Path, contents: Sequence[bytes], *, insist: bool = False) -> Volume:
    """Selection and volume of a study; `insist`: a person names the series, which overrules what is unsuitable."""
    instances: list[steps.StoredInstance] = []
    for number, content in enumerate(contents):
        (folder / str(number)).write_bytes(content)
        header = read_header(content)
        assert header.study_uid is not None
        assert header.series_uid is not None
        assert header.sop_uid is not None
        instances.append(steps.StoredInstance(header.series_uid, header.study_uid, header.sop_uid, str(number)))
    override = Override(Uid(instances[0].series_uid)) if insist else None
    selection = steps.choose_series(instances, lambda locator: folder / locator, override=override)
    return steps.prepare(selection, lambda locator: (folder / locator).read_bytes())


def refusal(folder: Path, contents: Sequence[bytes], *, insist: bool = False) -> HeimdallrError:
    with within(waiting_s=1.0), pytest.raises(HeimdallrError) as caught:
        prepared(folder, contents, insist=insist)
    return caught.value


def nan_slope(count: int) -> list[bytes]:
    return [one.replace(b"DS\x02\x001 ", b"DS" + struct.pack("<H", 4) + b"NaN ") for one in ct_study(count)]


@pytest.mark.parametrize(
    ("contents", "code"),
    [
        (lambda: ct_study(1), "too_few_slices"),
        (lambda: ct_study(2, (2, 2)), "too_few_slices"),
        (lambda: ct_study(12, PixelSpacing=["0", "0"]), "bad_spacing"),
        (lambda: nan_slope(12), "bad_rescale"),
        (lambda: ct_study(12, ImagePositionPatient=["1", "1", "1"]), "single_slice"),
    ],
)
def test_what_no_volume_can_be_made_of_is_refused_by_its_headers(
    tmp_path: Path, contents: Callable[[], list[bytes]], code: str
) -> None:
    error = refusal(tmp_path, contents())
    assert isinstance(error, NoUsableSeries)
    assert f"{code}:" in error.detail


def test_one_slice_stays_refused_although_a_person_wants_it(tmp_path: Path) -> None:
    error = refusal(tmp_path, ct_study(1), insist=True)
    assert isinstance(error, NoUsableSeries)
    assert "single_slice" in error.detail or "too_few_slices" in error.detail


def at_the_engine(volume: Volume) -> HeimdallrError:
    with within(), pytest.raises(HeimdallrError) as caught:
        Study(volume, Slabs(1))
    return caught.value


def test_two_by_two_by_two_voxels_are_refused_by_the_engine_at_the_latest(tmp_path: Path) -> None:
    index, read = indexed(ct_study(2, (2, 2)))
    volume = assemble(group(index)[0], read)
    assert volume.shape == (2, 2, 2)
    error = at_the_engine(volume)
    assert isinstance(error, NotAVolume)
    assert error.reason == "too_small"


def test_a_ct_of_zeros_is_an_empty_image(tmp_path: Path) -> None:
    made = [set_pixels(dataset, np.zeros((64, 64), np.uint16)) for dataset in ct_datasets(16)]
    volume = prepared(tmp_path, [to_bytes(dataset) for dataset in made])
    assert int(volume.array.max()) == int(volume.array.min()) == -1024
    assert isinstance(at_the_engine(volume), EmptyImage)


def test_a_study_whose_decoder_crashes_is_refused_and_the_next_one_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = ct_datasets(12, (64, 64))
    for dataset in made:
        to_bytes(dataset)
        dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    contents = [to_bytes(dataset) for dataset in made]
    expected = prepared(tmp_path, contents)
    crashing = DecoderPool(1, module="tests.support.crashing_decoder")
    # As a consumer replica does before it is ready.
    assert crashing.warm_up() == 1
    with monkeypatch.context() as changed:
        changed.setattr(isolated, "pool", lambda: crashing)
        changed.setattr("heimdallr_ray.dicom.decode.pool", lambda: crashing)
        error = refusal(tmp_path, contents)
    crashing.stop()
    assert isinstance(error, NotAVolume)
    assert (error.reason, error.detail) == ("undecodable_pixels", "the decoder's process ended")
    assert np.array_equal(prepared(tmp_path, contents).array, expected.array)
