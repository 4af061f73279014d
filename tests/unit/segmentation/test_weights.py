from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from heimdallr_ray.errors import WeightsMissing, WeightsTampered
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.weights import (
    MANIFEST_NAME,
    SYNTHETIC_MARKER,
    any_synthetic,
    read_document,
    read_manifest,
    store_document,
    verify,
    write_manifest,
)

DATASET = "Dataset298/trainer/dataset.json"
CHECKPOINT = "Dataset298/trainer/fold_0/checkpoint_final.pth"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / CHECKPOINT
    target.parent.mkdir(parents=True)
    target.write_bytes(b"weights" * 1000)
    (tmp_path / "Dataset298/trainer/plans.json").write_text("{}")
    write_manifest(tmp_path, synthetic=True, extra={"recipe": "phantoms", "format": 99})
    return tmp_path


def test_what_was_written_verifies(folder: Path) -> None:
    weights = verify(folder)
    assert weights.synthetic
    assert set(weights.files) == {CHECKPOINT, "Dataset298/trainer/plans.json"}
    assert weights.read(CHECKPOINT) == b"weights" * 1000
    assert weights.has_folder("Dataset298/trainer") and not weights.has_folder("Dataset29")
    document = json.loads((folder / MANIFEST_NAME).read_text())
    assert document["recipe"] == "phantoms" and document["format"] == 1


@pytest.mark.parametrize("position", [0, 3500, 6999])
def test_one_changed_byte_is_refused(folder: Path, position: int) -> None:
    content = bytearray((folder / CHECKPOINT).read_bytes())
    content[position] ^= 1
    (folder / CHECKPOINT).write_bytes(content)
    with pytest.raises(WeightsTampered):
        verify(folder)
    with pytest.raises(WeightsTampered):
        read_manifest(folder).read(CHECKPOINT)


@pytest.mark.parametrize("change", [b"", b"weights" * 1000 + b"x"])
def test_another_length_is_refused(folder: Path, change: bytes) -> None:
    (folder / CHECKPOINT).write_bytes(change)
    with pytest.raises(WeightsTampered):
        verify(folder)
    with pytest.raises(WeightsTampered):
        read_manifest(folder).read(CHECKPOINT)


def test_a_listed_file_that_is_gone_is_missing(folder: Path) -> None:
    (folder / CHECKPOINT).unlink()
    with pytest.raises(WeightsMissing):
        verify(folder)
    with pytest.raises(WeightsMissing):
        read_manifest(folder).read(CHECKPOINT)


def test_an_unlisted_file_is_never_read(folder: Path) -> None:
    (folder / "Dataset298/trainer/extra.pth").write_bytes(b"x")
    with pytest.raises(WeightsMissing):
        verify(folder).read("Dataset298/trainer/extra.pth")


def test_no_manifest_means_no_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing):
        verify(tmp_path)


DIGEST = "0" * 64


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"format": 2, "synthetic": True, "files": {}},
        {"format": 1, "synthetic": "yes", "files": {}},
        {"format": 1, "synthetic": True, "files": []},
        {"format": 1, "synthetic": True, "files": {"../outside": {"sha256": DIGEST, "size": 1}}},
        {"format": 1, "synthetic": True, "files": {"/etc/passwd": {"sha256": DIGEST, "size": 1}}},
        {"format": 1, "synthetic": True, "files": {"a//b": {"sha256": DIGEST, "size": 1}}},
        {"format": 1, "synthetic": True, "files": {"a": {"sha256": "short", "size": 1}}},
        {"format": 1, "synthetic": True, "files": {"a": {"sha256": DIGEST, "size": -1}}},
        {"format": 1, "synthetic": True, "files": {"a": {"sha256": DIGEST, "size": True}}},
        {"format": 1, "synthetic": True, "files": {"a": None}},
    ],
)
def test_a_malformed_manifest_is_refused(tmp_path: Path, document: object) -> None:
    (tmp_path / MANIFEST_NAME).write_text(json.dumps(document))
    with pytest.raises(WeightsTampered):
        verify(tmp_path)


def test_a_manifest_that_is_not_json_is_refused(tmp_path: Path) -> None:
    (tmp_path / MANIFEST_NAME).write_text("{")
    with pytest.raises(WeightsTampered):
        verify(tmp_path)


def set_synthetic(folder: Path, value: bool) -> None:
    """The manifest says so, whatever its models say."""
    document = json.loads((folder / MANIFEST_NAME).read_text())
    (folder / MANIFEST_NAME).write_text(json.dumps(document | {"synthetic": value}))


@pytest.mark.parametrize("marked", [True, False])
@pytest.mark.parametrize("said", [True, False])
def test_a_manifest_cannot_talk_a_marker_away(folder: Path, marked: bool, said: bool) -> None:
    description = f"{SYNTHETIC_MARKER} phantoms" if marked else "TotalSegmentator total 6 mm"
    (folder / DATASET).write_text(json.dumps({"description": description}))
    other = folder / "Dataset150/trainer/dataset.json"
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps({"labels": {}}))
    assert read_manifest(write_manifest(folder, synthetic=said).parent).synthetic == (marked or said)
    set_synthetic(folder, said)
    assert any_synthetic(verify(folder)) == (marked or said)


def test_one_demo_checkpoint_under_another_name_makes_a_registry_synthetic(folder: Path) -> None:
    packaged = next(weights_dir().rglob("*.pth"))
    other = folder / "Dataset291/trainer/fold_0/model.bin"
    other.parent.mkdir(parents=True)
    shutil.copyfile(packaged, other)
    assert read_manifest(write_manifest(folder, synthetic=False).parent).synthetic
    set_synthetic(folder, False)
    assert any_synthetic(verify(folder))
    other.write_bytes(packaged.read_bytes() + b" ")
    assert not read_manifest(write_manifest(folder, synthetic=False).parent).synthetic
    assert not any_synthetic(verify(folder))


@pytest.mark.parametrize("content", ["{", "[]", '{"description": "' + "x" * 2**20 + '"}'])
def test_a_model_without_a_readable_description_gets_no_manifest(folder: Path, content: str) -> None:
    before = (folder / MANIFEST_NAME).read_bytes()
    (folder / DATASET).write_text(content)
    with pytest.raises(WeightsTampered, match=r"dataset\.json"):
        write_manifest(folder, synthetic=False)
    assert (folder / MANIFEST_NAME).read_bytes() == before


def test_a_description_that_changed_later_is_not_asked(folder: Path) -> None:
    (folder / DATASET).write_text(json.dumps({"description": SYNTHETIC_MARKER}))
    write_manifest(folder, synthetic=False)
    set_synthetic(folder, False)
    (folder / DATASET).write_text("{}")
    with pytest.raises(WeightsTampered):
        any_synthetic(read_manifest(folder))


@pytest.mark.parametrize("pins", [[], {"Dataset298": []}, {"Dataset298": {}}, {"Dataset298": {"originals": 3}}, 7])
def test_pins_of_another_form_are_refused(folder: Path, pins: object) -> None:
    document = read_document(folder)
    assert document["imported"] == {}
    store_document(folder, {**document, "imported": pins})
    with pytest.raises(WeightsTampered, match="imported"):
        read_document(folder)


def test_what_is_on_its_way_into_a_registry_is_not_listed(folder: Path) -> None:
    before = read_manifest(write_manifest(folder, synthetic=True).parent).files
    (folder / ".incoming").mkdir()
    (folder / ".incoming" / "model.zip.part").write_bytes(b"half")
    (folder / ".manifest.json.tmp").write_bytes(b"{")
    assert read_manifest(write_manifest(folder, synthetic=True).parent).files == before
