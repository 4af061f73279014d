"""The two tables of difficult data: real studies, and series that a few changes make difficult.

One row each: what it is, and what comes of it. "equals" compares with a fresh run of dcm2niix, an independent
converter: no voxel differs, no corner is 0.01 mm away. Elsewhere stands the flag or the code.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import voxel_sizes
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    MRImageStorage,
    RLELossless,
    RTDoseStorage,
    SecondaryCaptureImageStorage,
    SegmentationStorage,
)
from scipy.ndimage import map_coordinates

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.deskew import deskew
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import IndexedInstance, Kind, Series, group, select
from heimdallr_ray.dicom.synthetic import write_ct_series, write_localizer
from heimdallr_ray.errors import HeimdallrError, NotAVolume, NotDicom
from heimdallr_ray.ids import Uid
from heimdallr_ray.volume import LabelMap, ModelRef, Volume, labels_on_slices
from tests.support import dcm2niix
from tests.support.dicom import ct_datasets, enhanced, hu_of, indexed, new_uid, pixels, set_pixels, to_bytes

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nibabel")

Read = Callable[[str], bytes]
SLICES = 40


# What comes of a row --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Equals:
    """A volume with these flags that equals dcm2niix's image, or what dcm2niix made from it (`derived`).

    Values of `interpolated` slices are equal to within their rounding.
    """

    flags: tuple[str, ...] = ()
    derived: str = ""
    interpolated: tuple[int, ...] = ()
    resample: bool = False
    parts: int = 1
    """Stacks that the series is split into; the first is compared."""


@dataclass(frozen=True)
class Phases:
    """A time series: each phase equals its part of dcm2niix's 4-D image."""

    phases: int


@dataclass(frozen=True)
class Stacks:
    """Several volumes in one series: each equals an image of its own of dcm2niix's, in whichever order."""

    flags: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Refused:
    """Refused by this code; dcm2niix has `images` images all the same, or None where that is not asked."""

    code: str
    images: int | None = None


Outcome = Equals | Phases | Stacks | Refused


def check(series: Sequence[Series], read: Read, outcome: Outcome, folder: Path) -> None:
    stacks = [one for one in series if one.kind is Kind.STACK] or list(series)
    contents = [read(instance.locator) for one in stacks for instance in one.instances]
    if isinstance(outcome, Refused):
        for one in stacks:
            with pytest.raises(HeimdallrError) as caught:
                assemble(one, read)
            assert getattr(caught.value, "reason", caught.value.code) == outcome.code
        if outcome.images is not None:
            assert len(dcm2niix.run(contents, folder).converted) == outcome.images
        return
    if isinstance(outcome, Phases):
        (theirs,) = dcm2niix.run(contents, folder).converted
        assert [(one.phase, one.phases) for one in stacks] == [
            (phase, outcome.phases) for phase in range(1, outcome.phases + 1)
        ]
        for phase, one in enumerate(stacks):
            dcm2niix.assert_equal(assemble(one, read), theirs.image.slicer[..., phase])
        return
    if isinstance(outcome, Stacks):
        volumes = [assemble(one, read) for one in stacks]
        assert tuple(volume.flags for volume in volumes) == outcome.flags
        ran = dcm2niix.run(contents, folder).converted
        # Echoes differ in every voxel, so the sum tells which image belongs to which.
        theirs = sorted((one.image for one in ran), key=lambda image: int(np.asarray(image.dataobj).sum()))
        for volume, image in zip(sorted(volumes, key=lambda one: int(one.array.sum())), theirs, strict=True):
            dcm2niix.assert_equal(volume, image)
        return
    assert len(stacks) == outcome.parts
    volume = assemble(stacks[0], read, resample=outcome.resample)
    assert volume.flags == outcome.flags
    ran = dcm2niix.run(contents, folder)
    images = [(one.derived[outcome.derived] if outcome.derived else one.image) for one in ran.converted[:1]]
    dcm2niix.assert_equal(volume, images[0], interpolated=outcome.interpolated)


# Real studies ---------------------------------------------------------------------------------------------------------


def files_of(folder: Path) -> list[IndexedInstance]:
    found: list[IndexedInstance] = []
    files = sorted(path for path in ([folder] if folder.is_file() else folder.rglob("*")) if path.is_file())
    assert files, f"{folder} is empty"
    for path in files:
        try:
            found.append(IndexedInstance(read_header(path), str(path), path.stat().st_size))
        except NotDicom:
            assert path.suffix == ".txt"
    return found


def from_file(locator: str) -> bytes:
    return Path(locator).read_bytes()


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "instances", "outcome"),
    [
        pytest.param("dcm_qa_ct/Philips_S21570/S2010", 28, Equals(), id="Philips head phantom"),
        pytest.param("totalsegmentator/example_ct_dicom", 20, Equals(), id="JPEG 2000 with blank UIDs"),
        pytest.param("dcm_qa_ct/GE", 28, Refused("variable_spacing", images=1), id="GE, tilt and variable spacing"),
        pytest.param("dcm_qa_ct/Philips_S21570/S4010", 6, Refused("not_volume_sop"), id="exam summary in colour"),
        pytest.param("dcm_qa_ct/Philips_S21570/S1000", 1, Refused("localizer", images=1), id="localizer"),
        pytest.param("dcm_qa_nih/GE_mr_0004", 150, Phases(10), id="GE functional MR, 15 x 10"),
        pytest.param("dcm_qa_nih/Siemens_mr_0003", 2, Refused("mosaic", images=1), id="Siemens mosaic"),
        pytest.param("pydicom_data/eCT_Supplemental.dcm", 1, Equals(), id="enhanced CT, 2 frames"),
        pytest.param(
            "pydicom_data/emri_small.dcm",
            1,
            Refused("multiframe_without_groups", images=1),
            id="multi-frame, no groups",
        ),
        pytest.param(
            "pydicom_data/emri_small_jpeg_ls_lossless.dcm",
            1,
            Refused("multiframe_without_groups", images=1),
            id="multi-frame, no groups, JPEG-LS",
        ),
    ],
)
def test_real_series(name: str, instances: int, outcome: Outcome, data_folder: Path, tmp_path: Path) -> None:
    index = files_of(data_folder / name)
    series = group(index)
    first = [one for one in series if one.uid == series[0].uid]
    assert sum(len(one.instances) for one in first) == instances
    check(first, from_file, outcome, tmp_path)


@pytest.mark.data
def test_philips_study_the_volume_among_localizer_and_colour_summary(data_folder: Path) -> None:
    selection = select(group(files_of(data_folder / "dcm_qa_ct" / "Philips_S21570")))
    assert {(one.description, one.instances): one.code for one in selection.decisions} == {
        ("", 1): "localizer",
        ("STD BRAIN 5MM", 28): "chosen",
        ("Exam Summary", 6): "not_volume_sop",
        ("", 3): "not_volume_sop",
    }


@pytest.mark.data
def test_functional_mr_is_no_volume_to_measure(data_folder: Path) -> None:
    selection = select(group(files_of(data_folder / "dcm_qa_nih" / "GE_mr_0004")))
    assert {one.code for one in selection.decisions} == {"four_d"}


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("MR_truncated.dcm", "truncated"),
        ("image_dfl.dcm", "not_volume_sop"),
        ("rtdose.dcm", "not_volume_sop"),
        ("rtplan.dcm", "not_volume_sop"),
        ("liver_1frame.dcm", "not_volume_sop"),
        ("test-SR.dcm", "not_volume_sop"),
        ("CT_small.dcm", "too_few_slices"),
    ],
)
def test_objects_that_are_no_volume_are_refused_by_code(name: str, code: str) -> None:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), name
    series = group(files_of(Path(path)))
    assert [one.code for one in select(series).decisions] == [code]
    with pytest.raises(HeimdallrError):
        assemble(series[0], from_file)


# Series made difficult ------------------------------------------------------------------------------------------------


def plain(made: list[Dataset]) -> list[Dataset]:
    return made


def without(*missing: int, of: int = SLICES) -> Callable[[list[Dataset]], list[Dataset]]:
    return lambda _: [dataset for k, dataset in enumerate(ct_datasets(of)) if k not in missing]


def shuffled(made: list[Dataset]) -> list[Dataset]:
    order = np.random.default_rng(0).permutation(len(made))
    for number, k in enumerate(order, start=1):
        made[int(k)].InstanceNumber = number
    return made


def exact_duplicate(made: list[Dataset]) -> list[Dataset]:
    return [*made, copy.deepcopy(made[5])]


def resent(made: list[Dataset]) -> list[Dataset]:
    again = new_uid(copy.deepcopy(made[5]), "again")
    again.InstanceNumber = 99
    return [*made, again]


def resent_with_other_pixels(made: list[Dataset]) -> list[Dataset]:
    made = resent(made)
    set_pixels(made[-1], pixels(made[6]))
    return made


def three_phases(made: list[Dataset]) -> list[Dataset]:
    found = [new_uid(copy.deepcopy(dataset), str(phase)) for phase in range(3) for dataset in made]
    for index, dataset in enumerate(found):
        dataset.AcquisitionNumber, dataset.InstanceNumber = index // SLICES + 1, index + 1
        set_pixels(dataset, pixels(dataset) + np.uint16(index // SLICES))
    return found


def slope_per_slice(made: list[Dataset]) -> list[Dataset]:
    for k, dataset in enumerate(made):
        dataset.RescaleSlope = f"{1 + k * 0.01:.4f}"
    return made


def localizer_inside(made: list[Dataset]) -> list[Dataset]:
    scout = new_uid(copy.deepcopy(made[0]), "scout")
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    scout.ImageOrientationPatient, scout.ImagePositionPatient = [1, 0, 0, 0, 0, -1], [-180, 0, 100]
    return [*made, scout]


def unnamed_localizer_inside(made: list[Dataset]) -> list[Dataset]:
    made = localizer_inside(made)
    made[-1].ImageType = ["ORIGINAL", "PRIMARY", "AXIAL"]
    return made


def one_slice_of_another_size(made: list[Dataset]) -> list[Dataset]:
    odd = new_uid(copy.deepcopy(made[0]), "odd")
    return [*made, set_pixels(odd, pixels(odd)[:16])]


def lacking(keyword: str) -> Callable[[list[Dataset]], list[Dataset]]:
    def change(made: list[Dataset]) -> list[Dataset]:
        for dataset in made:
            del dataset[keyword]
        return made

    return change


def with_values(**values: object) -> Callable[[list[Dataset]], list[Dataset]]:
    def change(made: list[Dataset]) -> list[Dataset]:
        for dataset in made:
            for keyword, value in values.items():
                setattr(dataset, keyword, value)
        return made

    return change


def sagittal(made: list[Dataset]) -> list[Dataset]:
    for k, dataset in enumerate(made):
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [0, 1, 0, 0, 0, -1], [-50.0 + k, -100, 100]
    return made


def descending(made: list[Dataset]) -> list[Dataset]:
    for dataset in made:
        dataset.ImagePositionPatient = [-180, -180, -float(dataset.ImagePositionPatient[2])]
    return made


def oblique(made: list[Dataset]) -> list[Dataset]:
    c, s = math.cos(math.radians(15)), math.sin(math.radians(15))
    for k, dataset in enumerate(made):
        dataset.ImageOrientationPatient = [1, 0, 0, 0, round(c, 8), round(s, 8)]
        dataset.ImagePositionPatient = [-180, round(-180 - s * k, 6), round(-150 + c * k, 6)]
    return made


def jitter_and_exposure(made: list[Dataset]) -> list[Dataset]:
    # dcm2niix takes the slice distance from the first two slices, we take it from first and last: they stay exact.
    for k, dataset in enumerate(made):
        dataset.ImagePositionPatient = [-180, -180, round(-150 + k + (0.004 if k % 3 == 2 else 0), 4)]
        dataset.Exposure, dataset.XRayTubeCurrent = 100 + k // 8, 200 + k
    return made


def padding(made: list[Dataset]) -> list[Dataset]:
    for dataset in made:
        stored = pixels(dataset).astype(np.int16) - np.int16(1024)
        stored[:5] = -2000
        set_pixels(dataset, stored)
        dataset.RescaleIntercept, dataset.BitsStored, dataset.HighBit = "0", 16, 15
        dataset.add_new(0x00280120, "SS", -2000)
    return made


def colour(made: list[Dataset]) -> list[Dataset]:
    for dataset in made[:6]:
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = bytes(3 * dataset.Rows * dataset.Columns)
    return made[:6]


def frames_without_groups(made: list[Dataset]) -> list[Dataset]:
    whole = copy.deepcopy(made[0])
    whole.NumberOfFrames, whole.PixelData = len(made), b"".join(dataset.PixelData for dataset in made)
    return [whole]


def as_mr(made: list[Dataset]) -> list[Dataset]:
    for dataset in made:
        for keyword in ("KVP", "ConvolutionKernel", "RescaleSlope", "RescaleIntercept", "RescaleType"):
            delattr(dataset, keyword)
        dataset.SOPClassUID, dataset.Modality = MRImageStorage, "MR"
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
        dataset.MagneticFieldStrength, dataset.EchoTime, dataset.RepetitionTime = "1.5", "4", "500"
    return made


def mr_slope_per_slice(made: list[Dataset]) -> list[Dataset]:
    for k, dataset in enumerate(as_mr(made)):
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = f"{1 + k * 0.01:.4f}", "0", "US"
    return made


def mr_of_slope_two(made: list[Dataset]) -> list[Dataset]:
    return with_values(RescaleSlope="2", RescaleIntercept="0", RescaleType="US")(as_mr(made))


def mr_time_points(made: list[Dataset]) -> list[Dataset]:
    found = three_phases(as_mr(made))
    for index, dataset in enumerate(found):
        dataset.TemporalPositionIdentifier, dataset.NumberOfTemporalPositions = index // SLICES + 1, 3
    return found


def two_echoes(made: list[Dataset]) -> list[Dataset]:
    made = as_mr(made)
    found = [new_uid(copy.deepcopy(dataset), str(echo)) for echo in (1, 2) for dataset in made]
    for index, dataset in enumerate(found):
        echo = index // SLICES + 1
        dataset.EchoTime, dataset.EchoNumbers, dataset.InstanceNumber = str(4 * echo), echo, index + 1
        set_pixels(dataset, pixels(dataset) + np.uint16(echo))
    return found


def localizer_copies(made: list[Dataset]) -> list[Dataset]:
    """The pictures of an exam summary that are no colour: one localizer, again and again."""
    return [new_uid(copy.deepcopy(made[0]), str(number)) for number in range(5)]


def steps_of(*widths: float) -> Callable[[list[Dataset]], list[Dataset]]:
    def change(made: list[Dataset]) -> list[Dataset]:
        z = -150.0
        for k, dataset in enumerate(made):
            dataset.ImagePositionPatient = [-180, -180, round(z, 4)]
            z += widths[k * len(widths) // len(made)]
        return made

    return change


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        pytest.param(plain, Equals(), id="plain"),
        pytest.param(without(20, 26), Refused("missing_slices", images=1), id="2 of 40 slices missing"),
        pytest.param(
            without(20, 26),
            Equals(("variable_spacing:1.00-2.00",), "_Eq_1", interpolated=(20, 26), resample=True),
            id="2 of 40 slices missing, resampled",
        ),
        pytest.param(
            without(40, 60, of=100),
            Equals(("missing_slices:2",), "_Eq_1", interpolated=(40, 60)),
            id="2 of 100 slices missing",
        ),
        pytest.param(shuffled, Equals(), id="instance numbers shuffled"),
        pytest.param(exact_duplicate, Equals(), id="exact duplicate"),
        pytest.param(resent, Equals(("duplicate_slices:1",), "_Eq_1"), id="re-sent under a new UID"),
        pytest.param(resent_with_other_pixels, Refused("conflicting_duplicates"), id="re-sent with other pixels"),
        pytest.param(three_phases, Phases(3), id="4-D, 3 phases"),
        pytest.param(slope_per_slice, Equals(("per_slice_rescale",)), id="rescale slope per slice"),
        pytest.param(with_values(RescaleSlope="0.5"), Equals(), id="rescale slope 0.5"),
        pytest.param(localizer_inside, Equals(), id="localizer in the series"),
        pytest.param(unnamed_localizer_inside, Equals(parts=2), id="localizer in the series, not called so"),
        pytest.param(one_slice_of_another_size, Equals(parts=2), id="one slice of another size"),
        pytest.param(with_values(PhotometricInterpretation="MONOCHROME1"), Equals(("monochrome1",)), id="MONOCHROME1"),
        pytest.param(lacking("ImageOrientationPatient"), Refused("no_geometry", images=1), id="no orientation"),
        pytest.param(with_values(PixelSpacing=["0.5", "0.9"]), Equals(), id="anisotropic pixels"),
        pytest.param(sagittal, Equals(), id="sagittal"),
        pytest.param(descending, Equals(), id="descending"),
        pytest.param(oblique, Equals(), id="oblique"),
        pytest.param(lambda made: [enhanced(made)], Equals(), id="one enhanced object of 40 frames"),
        pytest.param(jitter_and_exposure, Equals(), id="positions jitter by 4 um, exposure varies"),
        pytest.param(padding, Equals(), id="padding"),
        pytest.param(steps_of(1.0, 3.0), Refused("variable_spacing", images=1), id="variable spacing"),
        pytest.param(
            with_values(SeriesInstanceUID="", StudyInstanceUID="", FrameOfReferenceUID=""), Equals(), id="blank UIDs"
        ),
        pytest.param(lambda made: made[:1], Refused("single_slice", images=1), id="one slice"),
        pytest.param(colour, Refused("colour"), id="colour summary as CT"),
        pytest.param(
            with_values(SOPClassUID=SecondaryCaptureImageStorage), Refused("not_volume_sop"), id="secondary capture"
        ),
        pytest.param(localizer_copies, Refused("single_slice"), id="copies of one localizer, not called so"),
        pytest.param(lambda made: ct_datasets(140), Equals(), id="140 slices"),
        pytest.param(as_mr, Equals(("no_rescale",)), id="MR"),
        pytest.param(mr_slope_per_slice, Equals(("per_slice_rescale",)), id="MR, rescale slope per slice"),
        pytest.param(mr_time_points, Phases(3), id="MR, 3 time points"),
        pytest.param(two_echoes, Stacks((("no_rescale",),) * 2), id="MR, two echoes in one series"),
        pytest.param(
            lambda made: [enhanced(mr_of_slope_two(made), sop_class=EnhancedMRImageStorage)],
            Equals(),
            id="one enhanced MR object of 40 frames",
        ),
        pytest.param(
            with_values(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
            Refused("localizer"),
            id="copies of a localizer",
        ),
        pytest.param(frames_without_groups, Refused("multiframe_without_groups"), id="frames without groups"),
    ],
)
def test_series_made_difficult(
    change: Callable[[list[Dataset]], list[Dataset]], outcome: Outcome, tmp_path: Path
) -> None:
    index, read = indexed(to_bytes(dataset) for dataset in change(ct_datasets(SLICES)))
    check(group(index), read, outcome, tmp_path)


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, ExplicitVRBigEndian])
def test_frames_without_groups_are_refused_however_they_are_written(syntax: str) -> None:
    """By their header: no codec, no converter and no byte of the pixels is needed for that."""
    (whole,) = frames_without_groups(as_mr(ct_datasets(10)))
    whole.SOPClassUID = EnhancedMRImageStorage
    if syntax == ExplicitVRBigEndian:
        whole.PixelData = np.frombuffer(whole.PixelData, "<u2").astype(">u2").tobytes()
    else:
        whole.PixelData = encapsulate([b"\xff\xd8no pixels"] * 10)
        whole["PixelData"].is_undefined_length = True
    index, read = indexed([to_bytes(whole, syntax)])
    (series,) = group(index)
    assert [one.code for one in select([series]).decisions] == ["multiframe_without_groups"]
    with pytest.raises(NotAVolume) as caught:
        assemble(series, read)
    assert caught.value.reason == "multiframe_without_groups"


@pytest.mark.parametrize("sop_class", [RTDoseStorage, SegmentationStorage])
def test_what_lies_on_the_slices_of_a_volume_is_none(sop_class: str, tmp_path: Path) -> None:
    """dcm2niix converts such objects as images; here the storage class parts them before anything else is asked."""
    images, extra = ct_datasets(SLICES), enhanced(ct_datasets(SLICES, seed="extra"), sop_class=sop_class)
    extra.StudyInstanceUID, extra.Modality = images[0].StudyInstanceUID, "RTDOSE"
    index, read = indexed(to_bytes(dataset) for dataset in (*images, extra))
    selection = select(group(index))
    assert {one.code for one in selection.decisions} == {"chosen", "not_volume_sop"}
    assert selection.chosen is not None
    assert np.array_equal(assemble(selection.chosen, read).array, hu_of(images))


def test_one_truncated_slice_refuses_the_series_by_name_and_leaves_dcm2niix_without_output(tmp_path: Path) -> None:
    contents = [to_bytes(dataset) for dataset in ct_datasets(SLICES)]
    contents[3] = contents[3][:-500]
    index, read = indexed(contents)
    check(group(index), read, Refused("truncated", images=0), tmp_path)
    assert [one.code for one in select(group(index)).decisions] == ["truncated"]


def test_a_deflated_data_set_is_read_where_dcm2niix_reads_none(tmp_path: Path) -> None:
    made = ct_datasets(12)
    expected = hu_of(made)
    contents = [to_bytes(dataset, DeflatedExplicitVRLittleEndian) for dataset in made]
    index, read = indexed(contents)
    assert np.array_equal(assemble(group(index)[0], read).array, expected)
    assert dcm2niix.run(contents, tmp_path).converted == ()


def test_deflated_frames_are_refused_by_name(tmp_path: Path) -> None:
    made = ct_datasets(12)
    for dataset in made:
        squeezed = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        dataset.PixelData = encapsulate([squeezed.compress(dataset.PixelData) + squeezed.flush()])
        dataset["PixelData"].is_undefined_length = True
    # pydicom writes no such syntax; it is put in the place of another of the same length.
    written = (to_bytes(dataset, JPEG2000Lossless) for dataset in made)
    index, read = indexed(one.replace(b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.8.1\0") for one in written)
    check(group(index), read, Refused("unsupported_syntax", images=0), tmp_path)


def test_synthetic_ct_equals_dcm2niix_and_its_phantom(tmp_path: Path) -> None:
    hu = np.random.default_rng(3).integers(-1024, 3000, (40, 36, 24), dtype=np.int16)
    affine = np.array([[1.5, 0, 0, -20], [0, 1.2, 0, -30], [0, 0, 2.0, 5], [0, 0, 0, 1.0]])
    facts: dict[str, Any] = {
        "study_uid": Uid.derived("study"),
        "patient_id": "DEMO",
        "patient_name": "DEMO^ONE",
        "study_datetime": datetime(2026, 1, 2, 3, 4, 5),
    }
    contents = [
        *(content for _, content in write_ct_series(hu, affine, series_uid=Uid.derived("a"), **facts)),
        *(content for _, content in write_localizer(hu, affine, series_uid=Uid.derived("b"), **facts)),
    ]
    index, read = indexed(contents)
    (stack,) = [one for one in group(index) if one.kind is Kind.STACK]
    volume = assemble(stack, read)
    (theirs,) = [one for one in dcm2niix.run(contents, tmp_path).converted if one.objects == hu.shape[2]]
    dcm2niix.assert_equal(volume, theirs.image)
    dcm2niix.assert_equal(volume, nib.Nifti1Image(hu, affine))


# Tilt and variable spacing --------------------------------------------------------------------------------------------

MODEL = ModelRef("total", "test", "0" * 64, synthetic=True)


def labels_of(volume: Volume, mask: np.ndarray) -> LabelMap:
    return LabelMap(mask.astype(np.uint8), volume.affine_ras, {1: "bone"}, MODEL, volume.source.manifest_sha256)


def dice(a: np.ndarray, b: np.ndarray) -> float:
    return 2.0 * float((a & b).sum()) / float(a.sum() + b.sum())


def sampled(volume: Volume, points_ras: np.ndarray) -> np.ndarray:
    """Trilinear values at `[n, 3]` points in mm; -9999 outside."""
    turn = np.linalg.inv(volume.affine_ras)
    at = points_ras @ turn[:3, :3].T + turn[:3, 3]
    return map_coordinates(np.asarray(volume.array, np.float32), at.T, order=1, cval=-9999.0)


def world(volume: Volume, index: np.ndarray) -> np.ndarray:
    return index @ volume.affine_ras[:3, :3].T + volume.affine_ras[:3, 3]


@pytest.fixture(scope="module")
def ge_series(data_folder: Path) -> Series:
    (series,) = group(files_of(data_folder / "dcm_qa_ct" / "GE"))
    return series


@pytest.fixture(scope="module")
def ge_volume(ge_series: Series) -> Volume:
    return assemble(ge_series, from_file, resample=True)


@pytest.mark.data
def test_ge_head_is_flagged_and_every_slice_is_where_its_header_says(ge_series: Series, ge_volume: Volume) -> None:
    assert ge_volume.flags == ("tilt:18.5", "variable_spacing:1.08-7.00")
    positions = sorted((item.header.ipp for item in ge_series.instances if item.header.ipp), key=lambda ipp: ipp[2])
    assert len(positions) == len(ge_volume.slice_places) == 28
    for (x, y, z), place in zip(positions, ge_volume.slice_places, strict=True):
        assert np.linalg.norm(world(ge_volume, np.array([0, 0, place])) - [-x, -y, z]) < 0.01


@pytest.mark.data
def test_ge_head_upright_is_what_dcm2niix_makes_of_it(ge_series: Series, ge_volume: Volume, tmp_path: Path) -> None:
    contents = [from_file(item.locator) for item in ge_series.instances]
    (converted,) = dcm2niix.run(contents, tmp_path).converted
    theirs = converted.derived["_Tilt_Eq_1"]
    upright, _ = deskew(ge_volume)
    ours = dcm2niix.turned(nib.Nifti1Image(np.asarray(upright.array), upright.affine_ras))
    # dcm2niix takes 56 planes and whole pixels of padding; extent and direction are the same.
    assert ours.shape[:2] == theirs.shape[:2]
    assert np.allclose(voxel_sizes(ours.affine)[:2], voxel_sizes(theirs.affine)[:2], atol=1e-5)
    ends = [np.array([0, 0, 0, 1.0]), np.array([ours.shape[0] - 1.0, ours.shape[1] - 1, 0, 1])]
    pixel = upright.spacing_mm[0]
    for end in ends:
        for last in (False, True):
            mine, other = end.copy(), end.copy()
            mine[2], other[2] = (ours.shape[2] - 1, theirs.shape[2] - 1) if last else (0, 0)
            assert np.linalg.norm((ours.affine @ mine - theirs.affine @ other)[:3]) < pixel
    grid = np.meshgrid(*(np.arange(0, size, 3) for size in theirs.shape[:2]), np.arange(theirs.shape[2]), indexing="ij")
    index = np.stack(grid, axis=-1).reshape(-1, 3)
    values = np.asarray(theirs.dataobj)[tuple(index.T)].astype(np.float64)
    mine = sampled(upright, index @ theirs.affine[:3, :3].T + theirs.affine[:3, 3])
    both = (values > -1400) & (mine > -1400)
    assert both.mean() > 0.5
    assert np.corrcoef(values[both], mine[both])[0, 1] > 0.999
    assert np.percentile(np.abs(values - mine)[both], 50) < 1.0


@pytest.mark.data
def test_labels_of_the_ge_head_come_back_to_its_slices(ge_series: Series, ge_volume: Volume) -> None:
    bone = np.asarray(ge_volume.array) > 300
    upright, way = deskew(ge_volume)
    back = way.back(labels_of(upright, np.asarray(upright.array) > 300))
    assert dice(back.array > 0, bone) > 0.98
    on_slices = labels_on_slices(back, ge_volume) > 0
    for number in (0, 13, 27):
        (alone,) = [item for item in ge_series.instances if item.header.instance_number == number + 1]
        pixels_of_slice = assemble_one(alone)
        assert dice(on_slices[:, :, number], pixels_of_slice > 300) > 0.98


def assemble_one(instance: IndexedInstance) -> np.ndarray:
    """`[i, j]` stored values of one uncompressed slice, read without the package."""
    content = from_file(instance.locator)
    header = instance.header
    assert header.pixels is not None
    stored = np.frombuffer(content, "<i2", (header.rows or 0) * (header.columns or 0), header.pixels.offset)
    return stored.reshape(header.rows or 0, header.columns or 0).T


def tilted_phantom(
    slices: int = 48, tilt_deg: float = 18.5
) -> tuple[list[Dataset], Callable[[np.ndarray], np.ndarray]]:
    """A tilted CT of smooth balls, and the HU that they have at `[n, 3]` LPS points."""
    centres = np.array([[-150.0, -140.0, -130.0], [-120.0, -110.0, -120.0], [-160.0, -100.0, -115.0]])

    def hu(points: np.ndarray) -> np.ndarray:
        near = np.min([np.linalg.norm(points - centre, axis=1) for centre in centres], axis=0)
        return -1000 + 1400 / (1 + np.exp((near - 14) / 1.5))

    made = ct_datasets(slices, (96, 80), PixelSpacing=["1.0", "1.0"])
    slope = math.tan(math.radians(18.5))
    j, i = np.meshgrid(np.arange(96), np.arange(80), indexing="ij")
    for k, dataset in enumerate(made):
        origin = [-190.0, round(-180 + k * slope, 6), -150.0 + k]
        dataset.ImagePositionPatient, dataset.GantryDetectorTilt = origin, "18.5"
        points = np.stack([origin[0] + i, origin[1] + j, np.full(i.shape, origin[2])], axis=-1).reshape(-1, 3)
        stored = np.rint(hu(points) + 1024).astype(np.uint16).reshape(96, 80)
        set_pixels(dataset, stored)
    return made, hu


def test_tilt_is_shear_until_it_is_asked_to_go_and_labels_find_back() -> None:
    made, hu = tilted_phantom()
    index, read = indexed(to_bytes(dataset) for dataset in made)
    volume = assemble(group(index)[0], read)
    assert volume.flags == ("tilt:18.5",)
    for k, dataset in enumerate(made):
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        assert np.linalg.norm(world(volume, np.array([0, 0, k])) - [-x, -y, z]) < 0.01
    upright, way = deskew(volume)
    assert upright.flags == ("tilt:18.5", "deskewed")
    axes = upright.affine_ras[:3, :3]
    assert np.abs(axes.T @ axes - np.diag(np.array(upright.spacing_mm) ** 2)).max() < 1e-6
    inside = np.random.default_rng(0).uniform([2, 2, 0], np.array(volume.shape) - [3, 3, 1], (20_000, 3))
    inside[:, 2] = np.rint(inside[:, 2])
    points = world(volume, inside)
    assert np.corrcoef(sampled(upright, points), sampled(volume, points))[0, 1] > 0.999
    assert np.corrcoef(sampled(upright, points), hu(points * [-1, -1, 1]))[0, 1] > 0.999
    ball = np.asarray(volume.array) > -300
    back = way.back(labels_of(upright, np.asarray(upright.array) > -300))
    assert dice(back.array > 0, ball) > 0.98
    assert np.array_equal(back.affine_ras, volume.affine_ras)


def test_unevenly_spaced_tilted_slices_resampled_are_where_they_were_and_labels_find_back_exactly() -> None:
    made, hu = tilted_phantom(slices=60)
    # Every slice below, every third one above: 1 mm, then 3 mm.
    kept = [dataset for k, dataset in enumerate(made) if k < 24 or k % 3 == 0]
    index, read = indexed(to_bytes(dataset) for dataset in kept)
    series = group(index)[0]
    with pytest.raises(NotAVolume) as caught:
        assemble(series, read)
    assert caught.value.reason == "variable_spacing"
    volume = assemble(series, read, resample=True)
    assert volume.flags == ("tilt:18.5", "variable_spacing:1.00-3.00")
    assert volume.shape == (80, 96, 58)
    for place, dataset in zip(volume.slice_places, kept, strict=True):
        x, y, z = (float(value) for value in dataset.ImagePositionPatient)
        assert np.linalg.norm(world(volume, np.array([0, 0, place])) - [-x, -y, z]) < 0.01
    whole = np.stack(np.meshgrid(*(np.arange(size) for size in volume.shape), indexing="ij"), axis=-1).reshape(-1, 3)
    truth = hu(world(volume, whole) * [-1, -1, 1])
    assert np.corrcoef(truth, np.asarray(volume.array).reshape(-1))[0, 1] > 0.999
    on_slices = labels_on_slices(labels_of(volume, np.asarray(volume.array) > -300), volume)
    assert np.array_equal(on_slices > 0, hu_of(kept) > -300)
