"""Small files that claim to be huge: refused before anything is allocated and before any decoder sees them."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pydicom.encaps import encapsulate
from pydicom.uid import (
    HTJ2K,
    DeflatedExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.decode import stored_pixels
from heimdallr_ray.dicom.isolated import DecoderPool
from heimdallr_ray.dicom.read import read_header
from heimdallr_ray.dicom.series import group, select
from heimdallr_ray.errors import HeimdallrError, NotAVolume, TooLarge, TruncatedObject
from tests.support.bombs import deflated_bomb
from tests.support.bounds import within
from tests.support.dicom import ct_datasets, indexed, to_bytes

GROWTH_MB = 48


@pytest.fixture
def no_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(self: DecoderPool, frames: object) -> None:
        pytest.fail("a decoder was asked")

    monkeypatch.setattr(DecoderPool, "decode", never)


def resident_mb(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(field))


def refused(action: Callable[[], object], *, within_s: float = 0.1) -> HeimdallrError:
    """What `action` raises, within so much processor time and a few megabytes of this process."""
    # The highest resident size counts from here on (proc(5), clear_refs).
    Path("/proc/self/clear_refs").write_text("5")
    before = resident_mb("VmRSS")
    with within(within_s), pytest.raises(HeimdallrError) as caught:
        action()
    assert resident_mb("VmHWM") - before < GROWTH_MB
    return caught.value


def sof(marker: int, size: int) -> bytes:
    """A JPEG or JPEG-LS frame header of size x size pixels, with a scan of nothing behind it."""
    frame = struct.pack(">BBHBHHBBBB", 0xFF, marker, 11, 12, size, size, 1, 1, 0x11, 0)
    return b"\xff\xd8" + frame + b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00" + bytes(40) + b"\xff\xd9"


def siz(size: int) -> bytes:
    """A JPEG 2000 main header of size x size pixels."""
    body = struct.pack(">H8IHBBB", 0, size, size, 0, 0, size, size, 0, 0, 1, 11, 1, 1)
    return b"\xff\x4f\xff\x51" + struct.pack(">H", len(body) + 2) + body + bytes(60) + b"\xff\xd9"


def rle(_: int) -> bytes:
    return struct.pack("<16I", 2, 64, 80, *[0] * 13) + b"\x81\x00" * 16


FRAMES: dict[str, Callable[[int], bytes]] = {
    RLELossless: rle,
    JPEGLSLossless: lambda size: sof(0xF7, size),
    JPEG2000Lossless: siz,
    HTJ2K: siz,
    JPEGLosslessSV1: lambda size: sof(0xC3, size),
    JPEGBaseline8Bit: lambda size: sof(0xC0, size),
}


def bomb(syntax: str, size: int, frames: int) -> bytes:
    (dataset,) = ct_datasets(1)
    to_bytes(dataset)
    dataset.Rows = dataset.Columns = size
    dataset.NumberOfFrames = frames
    dataset.PixelData = encapsulate([FRAMES[syntax](size)] * frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return to_bytes(dataset, syntax)


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("syntax", list(FRAMES))
@pytest.mark.parametrize("size", [65_535, 16_384])
def test_65535_squared_times_64_in_a_tiny_file(syntax: str, size: int) -> None:
    content = bomb(syntax, size, 64)
    assert len(content) < 20_000
    header = read_header(content)
    assert isinstance(refused(lambda: stored_pixels(content, header)), TooLarge)
    index, read = indexed([content])
    series = group(index)
    assert select(series).chosen is None
    refused(lambda: assemble(series[0], read))


@pytest.mark.usefixtures("no_decoder")
@pytest.mark.parametrize("syntax", [syntax for syntax in FRAMES if syntax != RLELossless])
def test_a_small_header_around_a_huge_codestream(syntax: str) -> None:
    (dataset,) = ct_datasets(1)
    to_bytes(dataset)
    dataset.PixelData = encapsulate([FRAMES[syntax](65_535)])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    content = to_bytes(dataset, syntax)
    header = read_header(content)
    error = refused(lambda: stored_pixels(content, header))
    assert isinstance(error, NotAVolume)
    assert error.reason == "undecodable_pixels"


@pytest.mark.usefixtures("no_decoder")
def test_a_deflated_bomb_of_one_gibibyte_is_never_inflated() -> None:
    content = deflated_bomb()
    header = read_header(content)
    assert header.native_pixel_bytes == 1 << 30
    assert isinstance(refused(lambda: stored_pixels(content, header), within_s=0.5), TooLarge)
    index, _ = indexed([content])
    assert select(group(index)).chosen is None


def test_a_deflated_object_that_ends_before_its_pixels() -> None:
    (dataset,) = ct_datasets(1, (64, 64))
    content = to_bytes(dataset, DeflatedExplicitVRLittleEndian)
    header = read_header(content)
    assert np.array_equal(stored_pixels(content, header)[0], np.frombuffer(dataset.PixelData, "<u2").reshape(64, 64))
    cut = content[: len(content) - 2_000]
    assert isinstance(refused(lambda: stored_pixels(cut, header), within_s=0.5), TruncatedObject)


def test_a_codestream_of_a_million_tiles_ends_in_its_own_process() -> None:
    # OpenJPEG allocates for each tile before it reads the first.
    (dataset,) = ct_datasets(1, (1024, 1024))
    to_bytes(dataset)
    dataset.compress(JPEG2000Lossless, generate_instance_uid=False)
    content = bytearray(to_bytes(dataset))
    header = read_header(bytes(content))
    expected = stored_pixels(bytes(content), header)
    at = content.index(b"\xff\x4f\xff\x51") + 24
    content[at : at + 8] = struct.pack(">II", 1, 1)
    error = refused(lambda: stored_pixels(bytes(content), header), within_s=1.0)
    assert isinstance(error, NotAVolume)
    good = to_bytes(dataset)
    assert np.array_equal(stored_pixels(good, read_header(good)), expected)
