"""Labels come back as they were kept: voxels, their order in memory, and everything that is made from them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from isal import isal_zlib

from heimdallr_ray.errors import BlobMissing
from heimdallr_ray.pipelines.labels import LabelsDocument, blobs_in, decode, encode, worth_keeping
from heimdallr_ray.segmentation.engine import MemoryStep, Segmentation, SegmentationRun, Timings
from heimdallr_ray.segmentation.planner import LeftOut, LeftOutCode, Plan
from heimdallr_ray.volume import LabelMap, ModelRef

INPUTS = hashlib.sha256(b"inputs").hexdigest()
AFFINE = np.array([[-0.7, 0.1, 0, 180.1], [0, 0.7, 1 / 3, -12], [0.01, 0, 1.5, 1e-9], [0, 0, 0, 1]])


class Store(dict[str, bytes]):
    """Blobs by their digests."""

    def put(self, content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        self[digest] = content
        return digest

    def read(self, digest: str, limit: int) -> bytes:
        assert len(self[digest]) <= limit
        return self[digest]


def label_map(task: str, dtype: str, order: str) -> LabelMap:
    labels = np.random.default_rng(1).integers(0, 3, (5, 6, 7)).astype(dtype)
    if dtype == "uint16":
        labels[labels == 2] = 300
    model = ModelRef(task, "totalsegmentator/1", "0" * 64, synthetic=True, mode="turbo", spacing_mm=1.5)
    names = {1: "liver", 2: "spleen", 300: "rib"}
    return LabelMap(np.array(labels, order=order), AFFINE, names, model, "a" * 64)  # pyright: ignore[reportCallIssue, reportArgumentType]


def run() -> SegmentationRun:
    made = {
        "total": Segmentation("total", label_map("total", "uint16", "F"), Timings(forward_s=1.0)),
        "body": Segmentation("body", label_map("body", "uint8", "C"), Timings(forward_s=2.0)),
    }
    plan = Plan(("total", "body"), (LeftOut("x", LeftOutCode.LICENCE, "why"),), ("body",))
    return SegmentationRun(made, plan, {"liver": 0.1 + 0.2}, Timings(forward_s=3.0, total_s=4.5))


def kept() -> tuple[LabelsDocument, Store]:
    store = Store()
    document = encode(run(), INPUTS, store.put)
    return LabelsDocument.of(document.model_dump(mode="json")), store


def test_a_run_comes_back_voxel_by_voxel_and_costs_nothing() -> None:
    document, store = kept()
    before, after = run(), decode(document, INPUTS, store.read)
    assert (after.plan, after.found_ml, after.timings) == (before.plan, before.found_ml, Timings())
    assert list(after.segmentations) == ["total", "body"]
    for task, made in before.segmentations.items():
        ours, theirs = after.segmentations[task].label_map, made.label_map
        assert np.array_equal(ours.array, theirs.array) and ours.array.dtype == theirs.array.dtype
        assert ours.array.flags.c_contiguous == theirs.array.flags.c_contiguous
        assert np.array_equal(ours.affine_ras, theirs.affine_ras)
        assert (ours.labels, ours.model) == (theirs.labels, theirs.model)
        assert ours.source_manifest_sha256 == theirs.source_manifest_sha256
        assert after.segmentations[task].timings == Timings()
    assert (document.forward_s, document.total_s) == (3.0, 4.5)
    assert set(blobs_in(document.model_dump(mode="json"))) == set(store)


def test_equal_labels_of_other_inputs_are_other_blobs() -> None:
    store = Store()
    encode(run(), INPUTS, store.put)
    encode(run(), "b" * 64, store.put)
    assert len(store) == 4


@pytest.mark.parametrize("what", ["inputs", "bytes", "longer", "cut", "shape"])
def test_labels_that_are_not_those_that_were_kept_are_refused(what: str) -> None:
    document, store = kept()
    inputs, one = INPUTS, document.label_maps[0]
    changes: dict[str, Any] = {}
    plain = isal_zlib.decompress(store[one.sha256], wbits=31)
    if what == "inputs":
        inputs = "b" * 64
    elif what == "bytes":
        store[one.sha256] = store[one.sha256][:-1] + b"x"
    elif what == "longer":
        changes["sha256"] = store.put(isal_zlib.compress(plain + b"\0" * 1000, wbits=31))
    elif what == "cut":
        changes["sha256"] = store.put(isal_zlib.compress(plain[:-1], wbits=31))
    else:
        changes["shape"] = (1 << 20, 1 << 20, 2)
    damaged = document.model_copy(update={"label_maps": (one.model_copy(update=changes),)})
    with pytest.raises(BlobMissing):
        decode(damaged, inputs, store.read)


@pytest.mark.parametrize("change", [{"form": 99}, {"run": None}, {"more": 1}])
def test_a_document_of_another_form_is_refused(change: dict[str, Any]) -> None:
    document, _ = kept()
    with pytest.raises(BlobMissing, match="form"):
        LabelsDocument.of({**document.model_dump(mode="json"), **change})


def test_only_what_another_run_would_give_too_is_worth_keeping() -> None:
    assert worth_keeping(run())
    step = MemoryStep("totalsegmentator/1", "whole", "in_parts")
    assert not worth_keeping(replace(run(), memory_steps={"total": (step,)}))
    for code in LeftOutCode:
        made = replace(run(), plan=Plan(("total",), (LeftOut("x", code, "why"),)))
        passing = code in (LeftOutCode.FAILED, LeftOutCode.OUT_OF_TIME, LeftOutCode.MODEL_UNUSABLE)
        assert worth_keeping(made) is not passing
