"""Series that only dcm2niix can read: taken where it knows; refused by name where it guesses, disagrees, misbehaves."""

from __future__ import annotations

import subprocess
import sys
import time
import types
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from heimdallr_ray.dicom import limits
from heimdallr_ray.dicom.dcm2niix import installed, run
from heimdallr_ray.dicom.decode import stored_pixels
from heimdallr_ray.dicom.fallback import convert, convert_first, fallback_can_read
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import Selection, Series, group, select
from heimdallr_ray.errors import DecoderUnavailable, HeimdallrError, NotAVolume
from heimdallr_ray.ids import Uid
from heimdallr_ray.pipelines import steps
from heimdallr_ray.volume import Volume
from tests.support.dicom import ct_study, indexed, to_bytes
from tests.support.mosaics import mosaic_dataset

AXIAL = (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)
OBLIQUE = (0.96592583, 0.25881905, 0.0), (-0.25, 0.9330127, 0.25881905)
SAGITTAL = (0.0, 1.0, 0.0), (0.0, 0.0, -1.0)
FIRST = (-40.0, -33.0, 12.5)

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:nibabel")


def series_of(datasets: Sequence[Dataset]) -> tuple[Series, Callable[[str], bytes]]:
    index, read = indexed(to_bytes(dataset) for dataset in datasets)
    (series,) = group(index)
    return series, read


def refusal(datasets: Sequence[Dataset], code: str = "mosaic") -> tuple[str, str]:
    series, read = series_of(datasets)
    with pytest.raises(NotAVolume) as caught:
        convert(series, read, code)
    return caught.value.reason, caught.value.detail


def tiles(count: int = 7, rows: int = 12, columns: int = 16) -> np.ndarray:
    return np.random.default_rng(4).integers(0, 4000, (count, rows, columns)).astype(np.uint16)


@pytest.mark.parametrize(("row", "column"), [AXIAL, OBLIQUE, SAGITTAL])
def test_a_mosaic_is_the_volume_that_was_tiled(row: tuple[float, ...], column: tuple[float, ...]) -> None:
    slices = tiles()
    series, read = series_of([mosaic_dataset(slices, FIRST, row, column)])
    volume = convert(series, read, "mosaic")
    assert np.array_equal(volume.array, slices.transpose(2, 1, 0))
    assert volume.array.dtype == np.int16
    expected = np.eye(4)
    expected[:3, 0], expected[:3, 1] = 3.0 * np.array(row), 3.0 * np.array(column)
    expected[:3, 2], expected[:3, 3] = 5.0 * np.cross(row, column), FIRST
    assert np.abs(np.diag([-1, -1, 1, 1]) @ expected - volume.affine_ras).max() < 1e-3
    assert volume.flags == ("dcm2niix",)
    assert volume.source.attributes["backend"] == "dcm2niix"
    assert str(volume.source.attributes["backend_version"]).startswith("v1.")
    assert (volume.source.modality, volume.source.series_uid) == ("MR", series.uid)


def test_of_several_time_points_the_first_is_taken_and_said() -> None:
    points = [tiles() + np.uint16(k) for k in range(3)]
    made = [mosaic_dataset(item, FIRST, *AXIAL, time_point=k + 1) for k, item in enumerate(points)]
    series, read = series_of(made[::-1])
    volume = convert(series, read, "mosaic")
    assert volume.flags == ("dcm2niix", "time_points:3")
    assert np.array_equal(volume.array, points[0].transpose(2, 1, 0))


def test_a_functional_series_is_no_volume() -> None:
    made = [mosaic_dataset(tiles(4), FIRST, *AXIAL, time_point=k + 1) for k in range(9)]
    assert refusal(made)[0] == "four_d"


def test_a_slice_that_lies_elsewhere_by_the_protocol_is_refused() -> None:
    assert refusal([mosaic_dataset(tiles(), FIRST, *AXIAL, protocol_shift_mm=0.5)])[0] == "converter_disagrees"


@pytest.mark.parametrize("element", [0x0019100A, 0x00291020, 0x00200032, 0x00200037, 0x00280030])
def test_a_mosaic_that_does_not_tell_where_its_slices_lie_is_refused(element: int) -> None:
    made = mosaic_dataset(tiles(), FIRST, *AXIAL)
    del made[element]
    assert refusal([made])[0] == "mosaic"


def test_a_mosaic_whose_numbers_contradict_each_other_is_refused() -> None:
    made = mosaic_dataset(tiles(), FIRST, *AXIAL)
    made.ImagePositionPatient = ["0", "0", "0"]
    assert refusal([made]) == ("mosaic", "its position and those of its slices contradict each other")
    made = mosaic_dataset(tiles(), FIRST, *AXIAL)
    made[0x0019100A].value = 30
    assert refusal([made])[0] == "mosaic"


def frames(**places: object) -> Dataset:
    """Ten frames in one object without functional groups."""
    made = mosaic_dataset(tiles(), FIRST, *AXIAL)
    for element in (0x0019100A, 0x00190010, 0x00291010, 0x00291020, 0x00290010, 0x00291008, 0x00291018):
        del made[element]
    made.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND"]
    made.NumberOfFrames, made.Rows, made.Columns = 10, 12, 16
    made.PixelData = bytes(10 * 12 * 16 * 2)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient"):
        if keyword not in places:
            delattr(made, keyword)
    return made


def test_frames_without_places_are_refused_by_name() -> None:
    code = "multiframe_without_groups"
    assert refusal([frames()], code) == (code, "nothing in the header tells where its frames lie")
    places = {"ImagePositionPatient": True, "ImageOrientationPatient": True}
    # The first frame's place is known; in which direction the others follow is what the converter would guess.
    assert refusal([frames(**places)], code) == (
        code,
        "dcm2niix is not sure: the direction of the slices is not known",
    )


def test_no_other_refusal_is_given_to_the_converter() -> None:
    assert fallback_can_read("mosaic")
    assert not fallback_can_read("variable_spacing")
    assert refusal([mosaic_dataset(tiles(), FIRST, *AXIAL)], "missing_slices")[0] == "missing_slices"


def stored(folder: Path, contents: Sequence[bytes]) -> tuple[list[steps.StoredInstance], Callable[[str], Path]]:
    found: list[steps.StoredInstance] = []
    for number, content in enumerate(contents):
        (folder / str(number)).write_bytes(content)
        header = read_header(content)
        assert header.study_uid is not None
        assert header.sop_uid is not None
        series_uid = header.series_uid or Uid.derived("series")
        found.append(steps.StoredInstance(series_uid, header.study_uid, header.sop_uid, str(number)))
    return found, lambda locator: folder / locator


def prepared(folder: Path, contents: Sequence[bytes]) -> Volume:
    instances, path_of = stored(folder, contents)
    selection = steps.choose_series(instances, path_of)
    return steps.prepare(selection, lambda locator: path_of(locator).read_bytes())


def test_a_study_of_a_mosaic_alone_becomes_a_volume(tmp_path: Path) -> None:
    volume = prepared(tmp_path, [to_bytes(mosaic_dataset(tiles(), FIRST, *AXIAL))])
    assert "dcm2niix" in volume.flags


def test_what_the_assembler_reads_comes_first(tmp_path: Path) -> None:
    mosaic = mosaic_dataset(tiles(), FIRST, *AXIAL)
    mosaic.SeriesInstanceUID, mosaic.SeriesNumber = str(Uid.derived("mosaic")), 1
    volume = prepared(tmp_path, [to_bytes(mosaic), *ct_study(20, (64, 64))])
    assert volume.source.modality == "CT"


@pytest.mark.data
def test_real_siemens_mosaic_becomes_a_volume(data_folder: Path, tmp_path: Path) -> None:
    paths = sorted((data_folder / "dcm_qa_nih" / "Siemens_mr_0003").glob("*.dcm"))
    volume = prepared(tmp_path, [path.read_bytes() for path in paths])
    assert (volume.shape, volume.flags) == ((72, 72, 5), ("dcm2niix", "time_points:2"))
    content = paths[0].read_bytes()
    picture = stored_pixels(content, read_header(content))[0]
    for k in range(5):
        tile = picture[k // 3 * 72 : (k // 3 + 1) * 72, k % 3 * 72 : (k % 3 + 1) * 72]
        assert np.array_equal(volume.array[:, :, k].T, tile)
    assert np.allclose(volume.affine_ras, [[-3, 0, 0, 108], [0, -3, 0, 108], [0, 0, 12, 16], [0, 0, 0, 1]])


@pytest.mark.data
@pytest.mark.parametrize("name", ["emri_small.dcm", "emri_small_jpeg_ls_lossless.dcm"])
def test_real_multiframe_without_functional_groups_is_refused_by_name(
    data_folder: Path, tmp_path: Path, name: str
) -> None:
    made = dcmread(data_folder / "pydicom_data" / name)
    with pytest.raises(HeimdallrError) as caught:
        prepared(tmp_path, [to_bytes(made)])
    assert isinstance(caught.value, NotAVolume)
    assert caught.value.reason == "multiframe_without_groups"


HEAD = "print(\"Chris Rorden's dcm2niiX version v1.0.20260724  GCC\")\nprint('Found 1 DICOM file(s)')\n"
WRITE = """
import struct
def write(name, shape=(2, 3, 4), code=4):
    head = bytearray(352)
    struct.pack_into('<i', head, 0, 348)
    struct.pack_into('<8h', head, 40, 3, *shape, 1, 1, 1, 1)
    struct.pack_into('<hh', head, 70, code, {4: 16, 16: 32, 128: 24}[code])
    struct.pack_into('<f', head, 108, 352.0)
    struct.pack_into('<h', head, 254, 1)
    struct.pack_into('<12f', head, 280, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0)
    head[344:348] = b'n+1\\0'
    open('out/' + name, 'wb').write(bytes(head) + bytes({4: 2, 16: 4, 128: 3}[code] * 24))
"""
GOOD = "write('volume.nii')\nprint('Convert 1 DICOM as out/volume (2x3x4x1)')\n"


def by(script: str) -> str:
    with pytest.raises(NotAVolume) as caught:
        run(b"x", 1000, "mosaic", program=(sys.executable, "-c", HEAD + WRITE + script))
    assert caught.value.reason == "mosaic"
    return caught.value.detail


def test_the_scripts_of_these_tests_are_understood() -> None:
    made = run(b"x", 1000, "mosaic", program=(sys.executable, "-c", HEAD + WRITE + GOOD))
    assert (made.array.shape, made.version) == ((2, 3, 4), "v1.0.20260724")


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("", "dcm2niix made 0 images"),
        (GOOD + "raise SystemExit(2)", "dcm2niix failed (2)"),
        (GOOD + "import os; os.abort()", "dcm2niix failed (-6)"),
        (GOOD + "write('volume_Eq_1.nii')", "dcm2niix wrote 2 files instead of one"),
        (
            GOOD + "write('volumea.nii')\nprint('Convert 1 DICOM as out/volumea (2x3x4x1)')",
            "dcm2niix made 1 volumes of",
        ),
        ("print('Convert 1 DICOM as out/volume_Tilt_1 (2x3x4x1)')", "dcm2niix made 1 volumes of 1 objects"),
        ("print('Convert 1 DICOM as out/volume (2x3x4x5)')", "dcm2niix made 5 volumes of 1 objects"),
        ("print('Convert 1 DICOM as out/volume (2x3x4x1)')", "dcm2niix wrote 0 files instead of one"),
        (GOOD + "print('Warning: DOE^JANE looks odd')", "dcm2niix is not sure: a message that is not known here"),
        ("write('volume.nii', (2, 3, 5))\n" + GOOD.splitlines()[1], "dcm2niix wrote int16 (2, 3, 5)"),
        ("write('volume.nii', code=128)\n" + GOOD.splitlines()[1], "dcm2niix wrote "),
        ("open('out/volume.nii', 'wb').write(b'x')\n" + GOOD.splitlines()[1], "what dcm2niix wrote cannot be read"),
        ("open('out/volume.nii', 'wb').write(bytes(8 << 20))", "dcm2niix failed ("),
        ("print('Warning: x' * 20000)", "dcm2niix failed (0)"),
        ("x = [bytes(64 << 20) for _ in range(100)]", "dcm2niix failed (1)"),
    ],
)
def test_a_converter_that_misbehaves_is_refused(script: str, said: str) -> None:
    assert by(script).startswith(said)


def test_a_converter_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONVERTER_SECONDS", 1)
    started = time.monotonic()
    assert by("import time; time.sleep(60)") == "dcm2niix took longer than 1 s"
    assert by("while True: pass").startswith(("dcm2niix failed", "dcm2niix took longer"))
    assert time.monotonic() - started < 20


def test_nothing_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    series, read = series_of([mosaic_dataset(tiles(), FIRST, *AXIAL)])
    convert(series, read, "mosaic")
    by("write('volume.nii')")
    assert list(tmp_path.iterdir()) == []


def mosaics(*broken: bool) -> tuple[Selection, Callable[[str], bytes]]:
    """A study of mosaics, each larger than the one before; whether each one's protocol contradicts its slices."""
    made: list[bytes] = []
    for number, shift in enumerate(broken, start=1):
        one = mosaic_dataset(tiles(), FIRST, *AXIAL, protocol_shift_mm=0.5 if shift else 0.0)
        one.SeriesInstanceUID, one.SeriesNumber = str(Uid.derived("mosaic", str(number))), number
        one.SOPInstanceUID = str(Uid.derived("object", str(number)))
        made.append(to_bytes(one))
    index, read = indexed(made)
    return select(group(index), fallback=fallback_can_read), read


def verdicts(selection: Selection) -> list[tuple[str, bool, bool]]:
    return [(one.code, one.accepted, one.can_be_chosen) for one in selection.decisions]


def test_what_the_converter_cannot_read_is_refused_by_its_code_and_the_next_series_is_tried() -> None:
    selection, read = mosaics(True, False)
    assert verdicts(selection) == [("chosen", True, True), ("mosaic", False, True)]
    after, volume = convert_first(selection, read)
    assert volume is not None
    assert after.chosen is selection.series[1]
    assert volume.source.series_uid == selection.series[1].uid
    assert verdicts(after) == [("converter_disagrees", False, False), ("chosen", True, True)]
    assert after.decisions[1].chosen_by == "rules"
    assert after.decisions[0].lines[-1].rule == "converter"
    assert "converter_disagrees" in after.decisions[0].lines[-1].value


def test_where_it_reads_none_none_is_chosen_and_it_is_asked_a_bounded_number_of_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    selection, read = mosaics(*[True] * 6)
    asked: list[str] = []

    def counted(series: Series, read_bytes: Callable[[str], bytes], code: str) -> Volume:
        asked.append(series.uid)
        return convert(series, read_bytes, code)

    monkeypatch.setattr("heimdallr_ray.dicom.fallback.convert", counted)
    after, volume = convert_first(selection, read)
    assert (volume, after.chosen, after.fallback_code) == (None, None, "")
    assert asked == [series.uid for series in selection.series[:3]]
    assert [code for code, *_ in verdicts(after)] == ["converter_disagrees"] * 3 + ["mosaic"] * 3


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (None, "the converter dcm2niix is not installed"),
        (types.ModuleType("dcm2niix"), "the converter dcm2niix is not installed"),
        (types.SimpleNamespace(bin="/nowhere/dcm2niix"), "the program of the converter dcm2niix is missing"),
    ],
    ids=["no wheel", "another wheel", "no program"],
)
def test_a_converter_that_is_not_there_is_no_fault_of_the_series(
    monkeypatch: pytest.MonkeyPatch, module: object, said: str
) -> None:
    selection, read = mosaics(False)
    monkeypatch.setitem(sys.modules, "dcm2niix", module)
    with pytest.raises(DecoderUnavailable) as caught:
        convert_first(selection, read)
    assert caught.value.detail.startswith(said)


def test_a_program_that_does_not_start_is_none_either(tmp_path: Path) -> None:
    program = tmp_path / "dcm2niix"
    program.write_bytes(b"\x7fELF, and then nothing")
    program.chmod(0o755)
    with pytest.raises(DecoderUnavailable, match="does not start"):
        run(b"x", 1000, "mosaic", program=(str(program),))


def test_a_full_disk_is_none_either(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with pytest.raises(DecoderUnavailable, match="cannot be written"):
        run(b"x", 1000, "mosaic", program=installed())


def test_the_package_is_imported_without_the_wheel() -> None:
    script = "import sys; sys.modules['dcm2niix'] = None; import heimdallr_ray.pipelines.steps"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
