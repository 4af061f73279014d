"""Small objects that stand for huge ones."""

from __future__ import annotations

import struct
import zlib

from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian

from tests.support.dicom import ct_datasets, enhanced, to_bytes

INFLATED_BYTES = 1 << 30
FRAMES = 16


def deflated_bomb_data_set() -> bytes:
    """About 1.04 MB that inflate to a data set with 1 GiB of pixels (PS3.5 section A.5)."""
    return _packed(_described())


def deflated_volume_data_set() -> bytes:
    """The same, of an Enhanced CT image whose frames say where they lie: one that the selection chooses."""
    dataset = enhanced(ct_datasets(FRAMES, spacing_mm=5.0))
    dataset.Rows, dataset.Columns = 4096, 8192
    dataset.PixelData = b""
    assert dataset.Rows * dataset.Columns * 2 * FRAMES == INFLATED_BYTES
    return _packed(dataset)


def _packed(dataset: Dataset) -> bytes:
    """`dataset` with 1 GiB of zeros as its pixels."""
    plain = to_bytes(dataset)
    tag = plain.rindex(b"\xe0\x7f\x10\x00")
    meta_end = plain.index(b"\x08\x00\x05\x00", 132)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed = [packer.compress(plain[meta_end:tag] + b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", INFLATED_BYTES))]
    packed += [packer.flush(zlib.Z_FULL_FLUSH)]
    # Behind a full flush a block stands for itself and may be repeated.
    zeros = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    packed += [zeros.compress(bytes(16 << 20)) + zeros.flush(zlib.Z_FULL_FLUSH)] * 64
    stream = b"".join([*packed, b"\x03\x00"])
    assert len(stream) < 1_100_000
    # The first two of its 64 blocks, so that nobody inflates it here either.
    assert len(zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream, 32 << 20)) == 32 << 20
    return stream


def deflated_bomb() -> bytes:
    """The same as a Part 10 file; its file meta information ends with the transfer syntax."""
    head = to_bytes(_described(), DeflatedExplicitVRLittleEndian)
    syntax = head.index(DeflatedExplicitVRLittleEndian.encode(), 132)
    return head[: syntax + len(DeflatedExplicitVRLittleEndian)] + deflated_bomb_data_set()


def _described() -> Dataset:
    (dataset,) = ct_datasets(1)
    dataset.Rows = dataset.Columns = 16_384
    dataset.NumberOfFrames = 2
    dataset.PixelData = b""
    return dataset
