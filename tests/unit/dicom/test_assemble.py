"""The table of difficult series: each case becomes a volume with known values and flags, or a named refusal."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.series import Kind, Series, group, select
from heimdallr_ray.errors import NotAVolume, TruncatedObject
from heimdallr_ray.volume import Volume
from tests.support.dicom import ct_datasets, hu_of, indexed, new_uid, pixels, set_pixels, to_bytes

SLICES = 40


def study() -> list[Dataset]:
    return ct_datasets(SLICES)


def stacks_of(datasets: Sequence[Dataset | bytes]) -> tuple[list[Series], Callable[[str], bytes]]:
    index, read = indexed(item if isinstance(item, bytes) else to_bytes(item) for item in datasets)
    return group(index), read


def volume_of(datasets: Sequence[Dataset | bytes]) -> Volume:
    """The volume of the first stack, where the rest is not a stack."""
    series, read = stacks_of(datasets)
    return assemble(series[0], read)


def refusal(datasets: Sequence[Dataset | bytes]) -> str:
    with pytest.raises(NotAVolume) as caught:
        volume_of(datasets)
    return caught.value.reason


def test_a_plain_series_is_exact_and_in_the_order_that_is_promised():
    made = study()
    volume = volume_of(random.Random(0).sample(made, SLICES))
    assert volume.shape == (24, 32, SLICES)
    assert volume.array.dtype == np.int16
    assert volume.array.flags.f_contiguous
    assert np.array_equal(volume.array, hu_of(made))
    assert volume.affine_ras @ [0, 0, 0, 1] == pytest.approx([180, 180, -150, 1])
    assert volume.affine_ras @ [1, 2, 3, 1] == pytest.approx([180 - 0.7, 180 - 1.4, -147, 1])
    assert volume.flags == ()
    source = volume.source
    assert (source.modality, source.study_uid, source.synthetic) == ("CT", made[0].StudyInstanceUID, False)
    assert source.attributes["kvp"] == 120
    assert source.attributes["patient_age_years"] == 66


def test_the_manifest_depends_on_the_instances_and_not_on_their_arrival():
    made = study()
    forward, backward = volume_of(made), volume_of(made[::-1])
    assert forward.source.manifest_sha256 == backward.source.manifest_sha256
    made[3] = set_pixels(made[3], pixels(made[3]) + np.uint16(1))
    assert volume_of(made).source.manifest_sha256 != forward.source.manifest_sha256


def test_shuffled_instance_numbers_change_nothing():
    made = study()
    expected = hu_of(made)
    for number, dataset in enumerate(random.Random(0).sample(made, SLICES), start=1):
        dataset.InstanceNumber = number
    assert np.array_equal(volume_of(made).array, expected)


def test_descending_slices_give_the_same_volume():
    made = study()
    for number, dataset in enumerate(reversed(made), start=1):
        dataset.InstanceNumber = number
    volume = volume_of(made)
    assert np.array_equal(volume.array, hu_of(made))
    assert volume.affine_ras[2, 2] == 1


def test_exact_duplicate_and_resent_copy_count_once():
    made = study()
    expected = hu_of(made)
    assert volume_of([*made, copy.deepcopy(made[5])]).flags == ()
    again = new_uid(copy.deepcopy(made[5]), "again")
    again.InstanceNumber = 99
    volume = volume_of([*made, again])
    assert volume.flags == ("duplicate_slices:1",)
    assert np.array_equal(volume.array, expected)


def test_two_different_slices_at_one_position_are_refused():
    made = study()
    other = set_pixels(new_uid(copy.deepcopy(made[5]), "other"), pixels(made[6]))
    assert refusal([*made, other]) == "conflicting_duplicates"


def test_time_series_are_split_into_phases():
    made = [new_uid(copy.deepcopy(dataset), str(phase)) for phase in range(3) for dataset in ct_datasets(SLICES)]
    for index, dataset in enumerate(made):
        dataset.AcquisitionNumber = index // SLICES + 1
        dataset.InstanceNumber = index + 1
        set_pixels(dataset, pixels(dataset) + np.uint16(index // SLICES))
    series, read = stacks_of(made)
    assert [(item.phase, len(item.instances)) for item in series] == [(1, 40), (2, 40), (3, 40)]
    volumes = [assemble(item, read) for item in series]
    assert np.array_equal(volumes[1].array - volumes[0].array, np.ones_like(volumes[0].array))
    chosen = select(series).chosen
    assert chosen is not None
    assert chosen.phase == 1


def test_time_series_that_nothing_tells_apart_are_refused():
    made = [new_uid(copy.deepcopy(dataset), str(phase)) for phase in range(3) for dataset in ct_datasets(SLICES)]
    assert refusal(made) == "four_d"
    assert refusal(made[: SLICES + 15]) == "incomplete_4d"


def test_slopes_per_slice_give_float32_and_are_flagged():
    made = study()
    for k, dataset in enumerate(made):
        dataset.RescaleSlope = f"{1 + k * 0.01:.4f}"
    volume = volume_of(made)
    assert volume.array.dtype == np.float32
    assert volume.flags == ("per_slice_rescale",)
    assert np.array_equal(volume.array, hu_of(made).astype(np.float32))


def test_fractional_slope_gives_float32():
    made = ct_datasets(SLICES, RescaleSlope="0.5")
    volume = volume_of(made)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, hu_of(made))


def test_integer_values_beyond_int16_become_float32_midway():
    made = study()
    stored = np.full((32, 24), 65000, np.uint16)
    for dataset in made:
        dataset.BitsStored, dataset.HighBit = 16, 15
    set_pixels(made[20], stored)
    volume = volume_of(made)
    assert volume.array.dtype == np.float32
    assert np.array_equal(volume.array, hu_of(made))


def test_integer_slope_is_exact_in_int16():
    made = ct_datasets(SLICES, RescaleSlope="2", RescaleIntercept="-2048")
    volume = volume_of(made)
    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, hu_of(made))


def test_signed_padding_keeps_its_value_and_is_named():
    made = study()
    for dataset in made:
        stored = pixels(dataset).astype(np.int16) - np.int16(1024)
        stored[:5] = -2000
        set_pixels(dataset, stored)
        dataset.RescaleIntercept, dataset.BitsStored, dataset.HighBit = "0", 16, 15
        dataset.add_new(0x00280120, "SS", -2000)
    volume = volume_of(made)
    assert volume.source.attributes["padding_value"] == -2000
    assert np.array_equal(volume.array, hu_of(made))
    assert (volume.array[:, :5] == -2000).all()


def test_overlay_bits_above_the_stored_ones_are_not_values():
    made = study()
    expected = hu_of(made)
    for dataset in made:
        set_pixels(dataset, pixels(dataset) | np.uint16(0x8000))
    assert np.array_equal(volume_of(made).array, expected)


def test_monochrome1_is_display_and_leaves_the_values():
    made = ct_datasets(SLICES, PhotometricInterpretation="MONOCHROME1")
    volume = volume_of(made)
    assert volume.flags == ("monochrome1",)
    assert np.array_equal(volume.array, hu_of(made))


def test_a_localizer_inside_the_series_is_split_off():
    made = study()
    expected = hu_of(made)
    scout = new_uid(copy.deepcopy(made[0]), "scout")
    scout.ImageType, scout.InstanceNumber = ["ORIGINAL", "PRIMARY", "LOCALIZER"], 0
    scout.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
    series, read = stacks_of([scout, *made])
    assert [(item.kind, len(item.instances)) for item in series] == [(Kind.STACK, 40), (Kind.LOCALIZER, 1)]
    assert len({item.uid for item in series}) == 1
    assert np.array_equal(assemble(series[0], read).array, expected)
    assert [item.code for item in select(series).decisions] == ["chosen", "localizer"]


def test_a_slice_of_another_size_is_another_stack():
    made = study()
    odd = new_uid(copy.deepcopy(made[0]), "odd")
    set_pixels(odd, pixels(odd)[:16])
    series, read = stacks_of([*made, odd])
    assert [len(item.instances) for item in series] == [40, 1]
    assert assemble(series[0], read).shape == (24, 32, 40)
    assert [item.code for item in select(series).decisions] == ["chosen", "too_few_slices"]


def test_anisotropic_pixels_keep_rows_and_columns_apart():
    volume = volume_of(ct_datasets(SLICES, PixelSpacing=["0.5", "0.9"]))
    assert volume.spacing_mm == pytest.approx((0.9, 0.5, 1.0))


def test_sagittal_slices():
    made = ct_datasets(SLICES, ImageOrientationPatient=["0", "1", "0", "0", "0", "-1"])
    for k, dataset in enumerate(made):
        dataset.ImagePositionPatient = [-50.0 + k, -100, 100]
    volume = volume_of(made)
    # The normal of this orientation points to the right: slice 0 of the volume is the leftmost.
    assert volume.affine_ras @ [0, 0, 0, 1] == pytest.approx([11, 100, 100, 1])
    assert volume.affine_ras @ [0, 0, SLICES - 1, 1] == pytest.approx([50, 100, 100, 1])
    assert np.array_equal(volume.array, hu_of(made[::-1]))


def test_jitter_of_micrometres_and_varying_exposure_change_nothing():
    made = study()
    for k, dataset in enumerate(made):
        dataset.ImagePositionPatient = [-180, -180, round(-150 + k + (0.004 if k % 2 else 0), 4)]
        dataset.Exposure, dataset.XRayTubeCurrent = 100 + k // 8, 200 + k
    assert volume_of(made).flags == ()


def test_tilt_is_flagged_and_every_slice_stays_where_it_was():
    made = study()
    for k, dataset in enumerate(made):
        dataset.ImagePositionPatient = [-180, round(-180 + k * 0.3346, 4), round(-150.0 + k, 4)]
    volume = volume_of(made)
    assert volume.flags == ("tilt:18.5",)
    for k, dataset in enumerate(made):
        x, y, z = dataset.ImagePositionPatient
        assert volume.affine_ras @ [0, 0, k, 1] == pytest.approx([-x, -y, z, 1], abs=0.01)


def test_one_missing_slice_of_many_is_filled_and_said():
    made = ct_datasets(100)
    volume = volume_of([dataset for k, dataset in enumerate(made) if k != 40])
    assert volume.flags == ("missing_slices:1",)
    assert volume.source.attributes["interpolated_slices"] == "40"
    expected = hu_of(made)
    expected[:, :, 40] = np.rint((expected[:, :, 39] + expected[:, :, 41]) / 2)
    assert np.array_equal(volume.array, expected)


def test_two_missing_slices_of_forty_are_refused():
    made = study()
    assert refusal([dataset for k, dataset in enumerate(made) if k not in (20, 26)]) == "missing_slices"


def test_variable_spacing_is_refused():
    made = study()
    for k, dataset in enumerate(made):
        dataset.ImagePositionPatient = [-180, -180, float(-150 + k + (k > 20) * (k - 20) * 0.5)]
    assert refusal(made) == "variable_spacing"


@pytest.mark.parametrize("keyword", ["ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing"])
def test_no_geometry_is_refused(keyword: str):
    made = study()
    for dataset in made:
        del dataset[keyword]
    assert refusal(made) == "no_geometry"


def test_one_truncated_slice_refuses_the_series_by_name():
    contents = [to_bytes(dataset) for dataset in study()]
    contents[3] = contents[3][:-500]
    series, read = stacks_of(contents)
    assert [item.code for item in select(series).decisions] == ["truncated"]
    with pytest.raises(TruncatedObject):
        assemble(series[0], read)


def test_pixel_data_shorter_than_the_image_is_truncated():
    made = study()
    made[3].PixelData = made[3].PixelData[:1000]
    series, read = stacks_of(made)
    assert [item.code for item in select(series).decisions] == ["truncated"]
    with pytest.raises(TruncatedObject):
        assemble(series[0], read)


@pytest.mark.parametrize(
    ("reason", "overrides"),
    [
        ("colour", {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
        ("mosaic", {"ImageType": ["ORIGINAL", "PRIMARY", "MOSAIC"]}),
        ("multiframe_without_groups", {"NumberOfFrames": 2}),
        ("bad_rescale", {"RescaleSlope": "0"}),
        ("bad_spacing", {"PixelSpacing": ["0", "0"]}),
        ("bad_orientation", {"ImageOrientationPatient": ["0", "0", "0", "0", "0", "0"]}),
        ("localizer", {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("not_volume_sop", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}),
        ("modality_lut", {"ModalityLUTSequence": [Dataset()]}),
    ],
)
def test_what_is_not_a_volume_is_refused_by_name(reason: str, overrides: dict[str, object]):
    assert refusal(ct_datasets(SLICES, **overrides)) == reason  # type: ignore[arg-type]


def test_blank_identifiers_group_by_what_the_slices_share():
    made = study()
    for dataset in made:
        dataset.SeriesInstanceUID = dataset.StudyInstanceUID = ""
    other = ct_datasets(SLICES, seed="other", SeriesInstanceUID="", SeriesDescription="another")
    series, _ = stacks_of([*made, *other])
    assert [len(item.instances) for item in series] == [40, 40]
    assert len({item.uid for item in series}) == 2


@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_native_transfer_syntaxes(syntax: str):
    made = ct_datasets(12)
    expected = hu_of(made)
    for dataset in made:
        if syntax == ExplicitVRBigEndian:
            dataset.PixelData = pixels(dataset).astype(">u2").tobytes()
    assert np.array_equal(volume_of([to_bytes(dataset, syntax) for dataset in made]).array, expected)


@pytest.mark.parametrize(
    ("syntax", "signed"),
    # pydicom writes JPEG-LS of unsigned values only.
    [
        (RLELossless, False),
        (RLELossless, True),
        (JPEG2000Lossless, False),
        (JPEG2000Lossless, True),
        (JPEGLSLossless, False),
    ],
)
def test_compressed_transfer_syntaxes(syntax: str, signed: bool):
    made = ct_datasets(4, (48, 40))
    for dataset in made:
        if signed:
            set_pixels(dataset, pixels(dataset).astype(np.int16) - np.int16(1024))
            dataset.RescaleIntercept, dataset.BitsStored, dataset.HighBit = "0", 16, 15
        to_bytes(dataset)
    expected = hu_of(made)
    for dataset in made:
        dataset.compress(syntax, generate_instance_uid=False)
    assert np.array_equal(volume_of(made).array, expected)


def test_progress_is_told_for_each_slice():
    series, read = stacks_of(ct_datasets(12))
    told: list[tuple[int, int]] = []
    assemble(series[0], read, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 12) for done in range(1, 13)]


def test_each_instance_is_read_once():
    series, read = stacks_of(ct_datasets(12))
    asked: list[str] = []

    def counting(locator: str) -> bytes:
        asked.append(locator)
        return read(locator)

    assemble(series[0], counting)
    assert sorted(asked) == sorted(item.locator for item in series[0].instances)
