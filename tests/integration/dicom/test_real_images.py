"""Real studies of several makers: what is chosen, what is refused by which code, and equality with dcm2niix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.decode import stored_pixels
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import IndexedInstance, Series, group, select
from heimdallr_ray.errors import HeimdallrError, NotAVolume, NotDicom
from tests.integration.dicom.test_dcm2niix import assert_equal, converted


def index_of(folder: Path) -> list[IndexedInstance]:
    found: list[IndexedInstance] = []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    assert files, f"{folder} is empty"
    for path in files:
        try:
            found.append(IndexedInstance(read_header(path), str(path), path.stat().st_size))
        except NotDicom:
            assert path.suffix == ".txt"
    return found


def read(locator: str) -> bytes:
    return Path(locator).read_bytes()


def equal_to_dcm2niix(series: Series, folder: Path) -> None:
    images = converted([read(item.locator) for item in series.instances], folder)
    assert len(images) == 1
    assert_equal(assemble(series, read), images[0])


def refusal(series: Series) -> str:
    with pytest.raises(NotAVolume) as caught:
        assemble(series, read)
    return caught.value.reason


@pytest.mark.data
def test_philips_head_the_volume_among_localizer_and_colour_summary(data_folder: Path, tmp_path: Path) -> None:
    series = group(index_of(data_folder / "dcm_qa_ct" / "Philips_S21570"))
    selection = select(series)
    codes = {(item.description, item.instances): item.code for item in selection.decisions}
    assert codes == {
        ("", 1): "localizer",
        ("STD BRAIN 5MM", 28): "chosen",
        ("Exam Summary", 6): "not_volume_sop",
        ("", 3): "not_volume_sop",
    }
    assert selection.chosen is not None
    equal_to_dcm2niix(selection.chosen, tmp_path)


@pytest.mark.data
def test_totalsegmentator_ct_with_blank_identifiers_is_one_series(data_folder: Path, tmp_path: Path) -> None:
    series = group(index_of(data_folder / "totalsegmentator" / "example_ct_dicom"))
    assert [len(item.instances) for item in series] == [20]
    assert select(series).chosen is series[0]
    equal_to_dcm2niix(series[0], tmp_path)


@pytest.mark.data
def test_ge_head_with_tilt_and_variable_spacing_is_refused_by_name(data_folder: Path) -> None:
    (series,) = group(index_of(data_folder / "dcm_qa_ct" / "GE"))
    assert [item.code for item in select([series]).decisions] == ["variable_spacing"]
    assert refusal(series) == "variable_spacing"


@pytest.mark.data
def test_ge_functional_mr_is_refused_as_four_dimensional(data_folder: Path) -> None:
    (series,) = group(index_of(data_folder / "dcm_qa_nih" / "GE_mr_0004"))
    assert [item.code for item in select([series]).decisions] == ["four_d"]
    assert refusal(series) == "four_d"


@pytest.mark.data
def test_siemens_mosaic_is_refused(data_folder: Path) -> None:
    series = group(index_of(data_folder / "dcm_qa_nih" / "Siemens_mr_0003"))
    assert {item.code for item in select(series).decisions} == {"mosaic"}


@pytest.mark.data
def test_enhanced_ct_equals_dcm2niix(data_folder: Path, tmp_path: Path) -> None:
    path = data_folder / "pydicom_data" / "eCT_Supplemental.dcm"
    (series,) = group([IndexedInstance(read_header(path), str(path), path.stat().st_size)])
    assert len(series.header.planes) == series.header.number_of_frames == 2
    equal_to_dcm2niix(series, tmp_path)


@pytest.mark.data
@pytest.mark.parametrize("name", ["emri_small.dcm", "emri_small_jpeg_ls_lossless.dcm"])
def test_multiframe_without_functional_groups_is_refused(data_folder: Path, name: str) -> None:
    path = data_folder / "pydicom_data" / name
    (series,) = group([IndexedInstance(read_header(path), str(path), path.stat().st_size)])
    assert refusal(series) == "multiframe_without_groups"
    assert [item.code for item in select([series]).decisions] == ["multiframe_without_groups"]


@pytest.mark.data
def test_compressed_real_pixels_equal_their_uncompressed_twins(data_folder: Path) -> None:
    folder = data_folder / "pydicom_data"
    plain, jpeg_ls = folder / "emri_small.dcm", folder / "emri_small_jpeg_ls_lossless.dcm"
    ours = [stored_pixels(path.read_bytes(), read_header(path)) for path in (plain, jpeg_ls)]
    assert ours[0].shape == (10, 64, 64)
    assert np.array_equal(ours[0], ours[1])
    lossless = folder / "JPEG-LL.dcm"
    assert stored_pixels(lossless.read_bytes(), read_header(lossless)).shape == (1, 1024, 256)
    radiograph = folder / "RG1_J2KI.dcm"
    assert stored_pixels(radiograph.read_bytes(), read_header(radiograph)).shape == (1, 1955, 1841)


def bundled(name: str) -> IndexedInstance:
    path = get_testdata_file(name, download=False)
    assert isinstance(path, str), name
    return IndexedInstance(read_header(Path(path)), path, Path(path).stat().st_size)


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
    series = group([bundled(name)])
    assert [item.code for item in select(series).decisions] == [code]
    with pytest.raises(HeimdallrError):
        assemble(series[0], read)


@pytest.mark.parametrize("name", ["MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm"])
def test_every_encoding_of_one_image_gives_the_same_pixels(name: str) -> None:
    plain, other = bundled("MR_small.dcm"), bundled(name)
    expected = stored_pixels(read(plain.locator), plain.header)
    assert np.array_equal(stored_pixels(read(other.locator), other.header), expected)


@pytest.mark.data
def test_a_jpeg_that_claims_an_impossible_precision_never_reaches_its_decoder(data_folder: Path) -> None:
    # The native decoder of JPEG lossless ends the whole process on this one.
    path = data_folder / "pydicom_data" / "JPEG-LL.dcm"
    content = bytearray(path.read_bytes())
    header = read_header(bytes(content))
    assert header.pixels is not None
    content[content.index(b"\xff\xc3", header.pixels.offset) + 4] = 57
    with pytest.raises(NotAVolume) as caught:
        stored_pixels(bytes(content), header)
    assert caught.value.reason == "undecodable_pixels"


@pytest.mark.data
def test_a_jpeg_that_kills_its_decoder_is_refused_and_the_next_one_decoded(data_folder: Path) -> None:
    path = data_folder / "pydicom_data" / "JPEG-LL.dcm"
    content = path.read_bytes()
    header = read_header(content)
    assert header.pixels is not None
    # With the marker of its Huffman table damaged, GDCM throws through its own process.
    at = content.index(b"\xff\xc4", header.pixels.offset)
    damaged = content[:at] + b"\xba" + content[at + 1 :]
    expected = stored_pixels(content, header)
    with pytest.raises(NotAVolume) as caught:
        stored_pixels(damaged, header)
    assert caught.value.detail == "the decoder's process ended"
    assert np.array_equal(stored_pixels(content, header), expected)
