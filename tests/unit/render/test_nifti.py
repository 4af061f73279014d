from __future__ import annotations

import gzip
import json
import struct
from dataclasses import replace
from typing import Any, cast

import nibabel as nib
import numpy as np
import pytest

from heimdallr_ray.render.nifti import display_label_map_nifti, display_volume_nifti, label_map_nifti, volume_nifti
from heimdallr_ray.volume import LabelMap, Volume, VolumeSource
from tests.unit.metrics.builders import TOTAL, model

SHEARED = np.array([[-0.7, 0.0, 0.0, 10.0], [0.0, 0.7, 0.3, -5.0], [0.0, 0.0, 2.5, 7.0], [0.0, 0.0, 0.0, 1.0]])


def _load(data: bytes) -> Any:
    return cast(Any, nib.Nifti1Image).from_bytes(gzip.decompress(data))


def _label_map(shape: tuple[int, int, int], dtype: type = np.uint8, *, synthetic: bool = False) -> LabelMap:
    array = np.random.default_rng(1).choice([0, 1, 5, 90], size=shape).astype(dtype)
    return LabelMap(array, SHEARED, TOTAL, model("total", synthetic=synthetic), "m")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_label_map_survives_with_geometry_type_intent_and_names(dtype: type, order: Any):
    label_map = _label_map((7, 6, 5), dtype)
    image = _load(label_map_nifti(replace(label_map, array=np.asarray(label_map.array, order=order))))
    assert np.array_equal(np.asarray(image.dataobj), label_map.array)
    assert image.get_data_dtype() == dtype
    assert np.allclose(image.affine, SHEARED, atol=1e-5)
    assert image.header["intent_code"] == 1002
    assert image.header.get_xyzt_units()[0] == "mm"
    (extension,) = image.header.extensions
    facts = json.loads(extension.get_content().decode().rstrip("\0"))
    assert facts["labels"]["5"] == "liver"
    assert facts["task"] == "total"
    assert "notice" not in facts


def test_demo_weights_are_named_inside_the_file():
    (extension,) = _load(label_map_nifti(_label_map((3, 3, 3), synthetic=True))).header.extensions
    facts = json.loads(extension.get_content().decode().rstrip("\0"))
    assert (facts["synthetic"], facts["notice"]) == (True, "DEMO WEIGHTS - SYNTHETIC - not for diagnosis")


def test_the_same_input_gives_the_same_bytes_with_no_clock_in_them():
    label_map = _label_map((7, 6, 5))
    data = label_map_nifti(label_map)
    assert data == label_map_nifti(replace(label_map, array=np.asfortranarray(label_map.array)))
    assert data[4:8] == b"\0\0\0\0", "gzip MTIME (RFC 1952 2.3)"


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
@pytest.mark.parametrize("order", ["C", "F"])
def test_the_archive_copy_holds_every_voxel_as_it_was(dtype: type, order: Any):
    values = np.random.default_rng(2).normal(0, 900, (300, 6, 5)).astype(dtype)
    data = volume_nifti(Volume(np.asarray(values, order=order), SHEARED, VolumeSource("CT")))
    image = _load(data)
    assert np.array_equal(np.asarray(image.dataobj), values)
    assert image.get_data_dtype() == dtype
    assert np.allclose(image.affine, SHEARED, atol=1e-5)
    # RFC 1952 2.3: no flags (so no name), no time
    assert data[3:8] == bytes(5)
    assert data == volume_nifti(Volume(np.asarray(values, order="C"), SHEARED, VolumeSource("CT")))


@pytest.mark.parametrize("shape", [(300, 10, 7), (256, 257, 3), (513, 4, 2), (1, 1, 1)])
def test_the_viewers_image_and_labels_are_picked_voxels_on_one_grid(shape: tuple[int, int, int]):
    rng = np.random.default_rng(2)
    volume = Volume(rng.integers(-1000, 3000, shape).astype(np.int16), SHEARED, VolumeSource("CT"))
    label_map = _label_map(shape)
    data = display_volume_nifti(volume)
    image, labels = _load(data), _load(display_label_map_nifti(label_map))
    assert image.shape == labels.shape
    assert np.array_equal(image.affine, labels.affine)
    assert max(image.shape) <= 256
    assert image.get_data_dtype() == np.int16
    # nibabel hides the slope after loading; nifti1.h: scl_slope and scl_inter are at byte 112.
    assert struct.unpack_from("<ff", gzip.decompress(data), 112) == (1.0, 0.0)
    shown, values = np.asarray(image.dataobj), np.asarray(labels.dataobj)
    to_source = np.linalg.inv(SHEARED) @ image.affine
    for index in rng.integers(0, image.shape, (20, 3)):
        i, j, k = np.rint((to_source @ [*index, 1.0])[:3]).astype(int)
        assert np.allclose((to_source @ [*index, 1.0])[:3], (i, j, k), atol=1e-3), "a voxel of the source, not between"
        assert shown[tuple(index)] == volume.array[i, j, k]
        assert values[tuple(index)] == label_map.array[i, j, k]


def test_a_float_image_is_rounded_and_clipped_for_the_viewer():
    array = np.array([[[-40000.0, 0.6, 40000.0, np.nan]]], np.float32)
    image = _load(display_volume_nifti(Volume(array, np.eye(4), VolumeSource("CT"))))
    assert np.asarray(image.dataobj).tolist() == [[[-32768, 1, 32767, 0]]]
