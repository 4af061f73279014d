"""Objects decoded ahead, side by side: the same pixels in the same order as one after the other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from heimdallr_ray.dicom.assemble import assemble
from heimdallr_ray.dicom.decode import stored_ahead, stored_pixels
from heimdallr_ray.dicom.series import IndexedInstance, group
from heimdallr_ray.errors import NotAVolume
from tests.support.dicom import ct_datasets, hu_of, indexed, new_uid, pixels, to_bytes

SHAPE = 40, 32


def compressed(dataset: Dataset, syntax: str) -> bytes:
    to_bytes(dataset)
    dataset.compress(syntax, generate_instance_uid=False)
    return to_bytes(dataset)


def multi_frame(datasets: list[Dataset]) -> bytes:
    """The slices as frames of one RLE object."""
    frames: list[bytes] = []
    for dataset in datasets:
        compressed(dataset, RLELossless)
        frames += generate_frames(dataset.PixelData, number_of_frames=1)
    whole = new_uid(datasets[0], "frames")
    whole.NumberOfFrames, whole.PixelData = len(frames), encapsulate(frames)
    whole["PixelData"].is_undefined_length = True
    return to_bytes(whole)


def mixed() -> tuple[list[IndexedInstance], Callable[[str], bytes], list[np.ndarray]]:
    """Objects of every kind in turn, and their pixels `[frame, row, column]`."""
    made = ct_datasets(60, SHAPE)
    values = [pixels(dataset).copy() for dataset in made]
    contents = [compressed(dataset, JPEG2000Lossless) for dataset in made[:21]]
    contents += [to_bytes(made[21]), to_bytes(made[22], DeflatedExplicitVRLittleEndian)]
    contents += [compressed(dataset, JPEGLSLossless) for dataset in made[23:30]]
    expected = [value[np.newaxis] for value in values[:30]]
    contents.append(multi_frame(made[30:50]))
    expected.append(np.stack(values[30:50]))
    contents += [compressed(dataset, RLELossless) for dataset in made[50:]]
    expected += [value[np.newaxis] for value in values[50:]]
    index, read = indexed(contents)
    return index, read, expected


def test_objects_of_every_kind_come_in_order_and_are_read_once() -> None:
    index, read, expected = mixed()
    seen: list[str] = []

    def reading(locator: str) -> bytes:
        seen.append(locator)
        return read(locator)

    found = list(stored_ahead([(item.locator, item.header) for item in index], reading))
    assert seen == [item.locator for item in index]
    assert len(found) == len(expected)
    for ahead, item, values in zip(found, index, expected, strict=True):
        assert np.array_equal(ahead, values)
        assert np.array_equal(stored_pixels(read(item.locator), item.header), values)


def test_a_compressed_series_is_the_volume_of_its_uncompressed_twin() -> None:
    made = ct_datasets(25, SHAPE)
    expected = hu_of(made)
    syntaxes = (JPEG2000Lossless, RLELossless, None, JPEGLSLossless)
    contents = [
        to_bytes(dataset) if syntax is None else compressed(dataset, syntax)
        for dataset, syntax in zip(made, syntaxes * 7, strict=False)
    ]
    index, read = indexed(contents)
    done: list[tuple[int, int]] = []
    volume = assemble(group(index)[0], read, progress=lambda one, of: done.append((one, of)))
    assert np.array_equal(volume.array, expected)
    assert done == [(k + 1, 25) for k in range(25)]


@pytest.mark.parametrize("at", [0, 7, 24])
def test_a_damaged_object_refuses_its_series_and_not_the_next(at: int) -> None:
    made = ct_datasets(25, SHAPE)
    contents = [compressed(dataset, JPEG2000Lossless) for dataset in made]
    start = contents[at].index(b"\xff\x4f\xff\x51")
    damaged = [*contents]
    # No start of data: the main header of JPEG 2000 never ends.
    damaged[at] = contents[at][:start] + contents[at][start:].replace(b"\xff\x93", b"\x00\x00")
    index, read = indexed(damaged)
    with pytest.raises(NotAVolume) as caught:
        assemble(group(index)[0], read)
    assert caught.value.reason == "undecodable_pixels"
    index, read = indexed(contents)
    assert assemble(group(index)[0], read).shape == (32, 40, 25)


def test_nobody_waits_for_what_is_not_wanted_any_more() -> None:
    index, read, expected = mixed()
    ahead = stored_ahead([(item.locator, item.header) for item in index], read)
    assert np.array_equal(next(ahead), expected[0])
    ahead.close()
    assert np.array_equal(stored_pixels(read(index[3].locator), index[3].header), expected[3])


def test_big_endian_pixels_come_in_native_order() -> None:
    (dataset,) = ct_datasets(1, SHAPE)
    expected = pixels(dataset).copy()
    dataset.PixelData = expected.astype(">u2").tobytes()
    content = to_bytes(dataset, ExplicitVRBigEndian)
    index, read = indexed([content])
    (found,) = stored_ahead([(index[0].locator, index[0].header)], read)
    assert found.dtype == np.dtype(np.uint16)
    assert np.array_equal(found[0], expected)
