"""Real images in every encoding: the same pixels, or a refusal that costs nobody else anything."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pydicom.data import get_testdata_file

from heimdallr_ray.dicom.decode import stored_pixels
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import IndexedInstance
from heimdallr_ray.errors import NotAVolume


def read(locator: str) -> bytes:
    return Path(locator).read_bytes()


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
