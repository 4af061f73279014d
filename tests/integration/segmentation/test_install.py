"""Models on their way into a registry: ZIPs, folders, hostile ones, other bytes than before, a death at any moment."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from heimdallr_ray.clock import SystemClock
from heimdallr_ray.config import Settings, load
from heimdallr_ray.errors import (
    AlreadyRunning,
    BadArchive,
    Broken,
    HeimdallrError,
    LicenceRequired,
    NotFound,
    TooLarge,
    WeightsTampered,
)
from heimdallr_ray.ids import Sha256
from heimdallr_ray.operations import models as work
from heimdallr_ray.segmentation import install, unpack
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.totalseg.checkpoint import read_checkpoint, tidy_checkpoint, trusted_checkpoint
from heimdallr_ray.segmentation.totalseg.judge import require_usable
from heimdallr_ray.segmentation.weights import MANIFEST_NAME, WORK_FOLDER, read_manifest, verify, write_manifest
from heimdallr_ray.zips import ArchiveLimits
from tests.support.weights import (
    FIRST_WEIGHT,
    PLAN,
    SAME_WEIGHT,
    labels_of,
    model_files,
    model_zip,
    network,
    plain,
    saved,
    spec_of,
    write_models,
    write_zip,
)

SILENT = work.Telling(say=lambda _: None, on_bytes=lambda *_: None, sleep=lambda _: None)
CHECKPOINT_298 = spec_of(298).checkpoint


def as_trained(seed: int = 0) -> bytes:
    """What nnU-Net's `save_checkpoint` writes: numbers of numpy among the training log."""
    more = {
        "optimizer_state": {"momentum": torch.zeros(1000)},
        "logging": {"mean_fg_dice": [np.float64(0.5), np.float32(0.25)], "table": np.arange(3)},
        "_best_ema": np.float64(0.9),
        "current_epoch": 4000,
        "init_args": {
            "configuration": "3d_fullres",
            "fold": 0,
            "device": torch.device("cuda"),
            "plans": {"mean": np.float64(2.5), "patch": [np.int64(96), 96]},
        },
        "inference_allowed_mirroring_axes": (0, 1),
    }
    return plain(298, seed, **more)


def sha256(content: bytes) -> Sha256:
    return Sha256.parse(hashlib.sha256(content).hexdigest())


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("/tmp/heimdallr-ran-a-pickle"),)


def site(folder: Path, **more: Any) -> Settings:
    return load({}, data_dir=folder / "data", profile="site", **more)


def bring(source: Path, registry: Path, **more: Any) -> tuple[install.Installed, ...]:
    settings = more.pop("settings", None) or site(registry.parent)
    return tuple(work.bring_in(settings, source, registry, SILENT, SystemClock(), **more))


def states(registry: Path) -> dict[str, bytes]:
    return {name: (registry / name).read_bytes() for name in verify(registry).files}


@pytest.fixture
def registry(tmp_path: Path) -> Path:
    return tmp_path / "weights"


def test_an_archive_of_upstream_becomes_a_registry_that_holds(tmp_path: Path, registry: Path) -> None:
    archive = model_zip(tmp_path, 298, as_trained())
    (done,) = bring(archive, registry)
    assert (done.files, done.rewritten, done.unchanged) == (3, 1, False)
    found = verify(registry)
    folder = spec_of(298).folder
    assert set(found.files) == {f"{folder}/plans.json", f"{folder}/dataset.json", CHECKPOINT_298}
    on_disk = {p.relative_to(registry).as_posix() for p in registry.rglob("*") if p.is_file()}
    assert on_disk == {*found.files, MANIFEST_NAME, f"{WORK_FOLDER}/lock"}
    pin = json.loads((registry / MANIFEST_NAME).read_text())["imported"][done.folder]
    assert pin["source"] == archive.name and pin["terms"] == "Apache-2.0"
    assert pin["archive_sha256"] == sha256(archive.read_bytes())
    assert pin["originals"][CHECKPOINT_298] == sha256(as_trained())


def test_a_checkpoint_is_rewritten_so_that_nothing_of_it_is_run_and_no_bit_of_the_network_changes(
    tmp_path: Path, registry: Path
) -> None:
    bring(model_zip(tmp_path, 298, as_trained(3)), registry)
    state = torch.load(registry / CHECKPOINT_298, weights_only=True)
    assert set(state) == {"network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes"}
    assert state["trainer_name"] == spec_of(298).trainer and state["inference_allowed_mirroring_axes"] == (0, 1)
    assert state["init_args"] == {
        "configuration": "3d_fullres", "fold": 0, "device": None, "plans": {"mean": 2.5, "patch": [96, 96]}
    }  # fmt: skip
    first, second = (state["network_weights"][name] for name in (FIRST_WEIGHT, SAME_WEIGHT))
    assert torch.equal(first, network(3)[FIRST_WEIGHT]) and first.data_ptr() == second.data_ptr()
    assert type(state["init_args"]["plans"]["mean"]) is float


def test_a_checkpoint_that_is_plain_already_keeps_upstreams_bytes(tmp_path: Path, registry: Path) -> None:
    (done,) = bring(model_zip(tmp_path, 298), registry)
    assert done.rewritten == 0 and (registry / CHECKPOINT_298).read_bytes() == plain()


@pytest.mark.parametrize(
    "content",
    [
        saved({"network_weights": network(), "init_args": Evil(), "trainer_name": "x"}),
        saved({"network_weights": Evil(), "init_args": {}, "trainer_name": "x"}),
        pickle.dumps(Evil()),
        plain()[:-40],
        b"PK\x03\x04",
        b"",
        saved({"network_weights": network()}),
        saved({"network_weights": {}, "init_args": {}, "trainer_name": "x"}),
        saved({"network_weights": {"a": 1}, "init_args": {}, "trainer_name": "x"}),
        saved([1, 2]),
    ],
    ids=["code", "code as network", "bare pickle", "cut", "head", "empty", "half", "no net", "no tensor", "list"],
)
def test_a_checkpoint_that_is_none_is_refused_and_nothing_of_it_runs(
    tmp_path: Path, registry: Path, content: bytes
) -> None:
    mark = Path("/tmp/heimdallr-ran-a-pickle")
    mark.unlink(missing_ok=True)
    bring(model_zip(tmp_path, 297), registry)
    before = states(registry)
    with pytest.raises(BadArchive):
        bring(model_zip(tmp_path, 298, content), registry)
    assert not mark.exists()
    assert states(registry) == before
    assert not list((registry / WORK_FOLDER).glob("*/*"))


def test_what_a_manifest_vouches_for_is_not_run_either() -> None:
    evil = saved({"network_weights": Evil(), "init_args": {}, "trainer_name": "x"})
    with pytest.raises(Broken, match="not read"):
        trusted_checkpoint(evil, "checkpoint_final.pth")
    assert trusted_checkpoint(as_trained(), "checkpoint_final.pth")["current_epoch"] == 4000


def test_a_compressed_checkpoint_is_refused_before_it_unpacks(tmp_path: Path) -> None:
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(50_000_000))
    with pytest.raises(BadArchive, match="compressed"):
        read_checkpoint(bomb.getvalue(), "bomb.pth")


def hostile(tmp_path: Path, kind: str) -> Path:
    files = model_files(298)
    target = tmp_path / "Dataset298.zip"
    folder = spec_of(298).folder
    if kind == "link":
        write_zip(target, files)
        with zipfile.ZipFile(target, "a") as archive:
            link = zipfile.ZipInfo(f"{folder}/fold_1/checkpoint_final.pth")
            link.external_attr = (stat.S_IFLNK | 0o777) << 16
            archive.writestr(link, "/etc/passwd")
        return target
    if kind == "leaves":
        files[f"../{folder}/plans.json"] = b"{}"
    elif kind == "absolute":
        files[f"/{folder}/plans.json"] = b"{}"
    elif kind == "twice":
        files[f"other/{folder}/plans.json"] = b"{}"
    elif kind == "bomb":
        files["zeros.bin"] = bytes(80_000_000)
    elif kind == "no plans":
        del files[f"{folder}/plans.json"]
    elif kind == "no checkpoint":
        del files[CHECKPOINT_298]
    elif kind == "plans are no JSON":
        files[f"{folder}/plans.json"] = b"{"
    elif kind == "a list as dataset":
        files[f"{folder}/dataset.json"] = b"[]"
    elif kind == "deep JSON":
        files[f"{folder}/plans.json"] = b"[" * 100_000
    elif kind == "another model":
        files = {name.replace("Dataset298", "Dataset999"): content for name, content in files.items()}
    elif kind == "another trainer":
        files = {name.replace("4000epochs", "4epochs"): content for name, content in files.items()}
    elif kind == "no ZIP":
        target.write_bytes(b"PK\x03\x04" + bytes(1000))
        return target
    return write_zip(target, files)


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("link", BadArchive),
        ("leaves", BadArchive),
        ("absolute", BadArchive),
        ("twice", BadArchive),
        ("bomb", TooLarge),
        ("no plans", BadArchive),
        ("no checkpoint", BadArchive),
        ("plans are no JSON", BadArchive),
        ("a list as dataset", BadArchive),
        ("deep JSON", BadArchive),
        ("another model", BadArchive),
        ("another trainer", BadArchive),
        ("no ZIP", BadArchive),
    ],
)
def test_an_archive_that_means_harm_or_is_not_whole_changes_nothing(
    tmp_path: Path, registry: Path, kind: str, error: type[HeimdallrError]
) -> None:
    bring(model_zip(tmp_path, 297), registry)
    before = states(registry)
    with pytest.raises(error):
        bring(hostile(tmp_path, kind), registry)
    assert states(registry) == before
    assert not [path for path in tmp_path.rglob("plans.json") if registry not in path.parents]


def unbuildable(tmp_path: Path, kind: str) -> Path:
    plans = PLAN.plans(spec_of(298).dataset_folder, "nnUNetPlans", "3d_fullres")
    one = plans["configurations"]["3d_fullres"]
    labels = labels_of(298)
    weights = plain(298, 7)
    if kind == "another trainer":
        weights = plain(298, 7, trainer_name="nnUNetTrainer")
    elif kind == "no plans":
        plans = {"a": 1}
    elif kind == "a list of plans":
        plans["configurations"] = []
    elif kind == "another configuration":
        weights = plain(298, 7, init_args={"configuration": "2d"})
    elif kind == "no configuration":
        weights = plain(298, 7, init_args={})
    elif kind == "another network":
        one["architecture"]["arch_kwargs"]["features_per_stage"] = [2, 8]
    elif kind == "a network that fits nowhere":
        one["architecture"]["arch_kwargs"]["features_per_stage"] = [1 << 20, 1 << 20]
    elif kind == "fewer labels than the network":
        labels = dict(list(labels.items())[:-1])
    elif kind == "labels of another model":
        labels = labels_of(150)
        weights = plain(298, 7, network_weights=network(7, 150))
    elif kind == "no patch":
        del one["patch_size"]
    elif kind == "a class of somebody else":
        one["architecture"]["network_class_name"] = "subprocess.Popen"
    elif kind == "a layer of somebody else":
        one["architecture"]["arch_kwargs"]["nonlin"] = "os.system"
    return model_zip(tmp_path, 298, weights, plans=plans, labels=labels)


UNBUILDABLE = (
    "another trainer",
    "no plans",
    "a list of plans",
    "another configuration",
    "no configuration",
    "another network",
    "a network that fits nowhere",
    "fewer labels than the network",
    "labels of another model",
    "no patch",
    "a class of somebody else",
    "a layer of somebody else",
)


@pytest.mark.parametrize("kind", UNBUILDABLE)
def test_a_model_that_cannot_be_built_does_not_take_the_place_of_one_that_can(
    tmp_path: Path, registry: Path, kind: str
) -> None:
    bring(model_zip(tmp_path, 298), registry)
    before = states(registry)
    with pytest.raises(BadArchive, match="Dataset298"):
        bring(unbuildable(tmp_path, kind), registry, replacing=True)
    assert states(registry) == before
    require_usable(read_manifest(registry), spec_of(298))


@pytest.mark.parametrize("fault", ["one lacks", "one is another network"])
def test_all_folds_of_a_model_are_looked_at(tmp_path: Path, registry: Path, fault: str) -> None:
    several = spec_of(514)
    assert several.folds == (0, 1, 2, 3, 4)
    files = model_files(514)
    settings = site(tmp_path, totalsegmentator_licence="n" * 18)
    for fold in range(1, 5):
        files[several.checkpoint_of(fold)] = plain(514, fold)
    whole = write_zip(tmp_path / "whole.zip", files)
    if fault == "one lacks":
        del files[several.checkpoint_of(3)]
    else:
        files[several.checkpoint_of(3)] = plain(514, 3, network_weights=network(3, 298))
    with pytest.raises(BadArchive, match="Dataset514"):
        bring(write_zip(tmp_path / "half.zip", files), registry, settings=settings)
    assert not (registry / MANIFEST_NAME).exists()
    (done,) = bring(whole, registry, settings=settings)
    assert done.files == 7


def test_an_archive_is_counted_while_it_is_unpacked(tmp_path: Path) -> None:
    archive = model_zip(tmp_path, 298)
    for limits in (ArchiveLimits(max_entries=2, max_unpacked_bytes=1 << 20), ArchiveLimits(100, 1000)):
        with pytest.raises(TooLarge):
            unpack.unpack_zip(archive, tmp_path / "staging", limits)


def test_a_folder_of_models_and_a_folder_of_archives_are_imported(tmp_path: Path, registry: Path) -> None:
    home = tmp_path / ".totalsegmentator" / "nnunet" / "results"
    write_models(home, model_files(298, as_trained()))
    (home / "link").symlink_to(tmp_path)
    archives = tmp_path / "archives"
    archives.mkdir()
    model_zip(archives, 297)
    model_zip(archives, 150, plain(150, 5))
    assert [one.folder[:10] for one in bring(tmp_path / ".totalsegmentator", registry)] == ["Dataset298"]
    assert [one.folder[:10] for one in bring(archives, registry)] == ["Dataset150", "Dataset297"]
    assert {name[:10] for name in verify(registry).files} == {"Dataset150", "Dataset297", "Dataset298"}


def test_one_data_sets_own_folder_is_imported(tmp_path: Path, registry: Path) -> None:
    write_models(tmp_path / "models", model_files(298))
    (done,) = bring(tmp_path / "models" / spec_of(298).dataset_folder, registry)
    assert done.files == 3 and CHECKPOINT_298 in verify(registry).files


def test_a_registry_carried_to_another_site_is_checked_on_arrival(tmp_path: Path, registry: Path) -> None:
    bring(model_zip(tmp_path, 298, as_trained()), registry)
    other = tmp_path / "other"
    bring(registry, other)
    assert verify(other).files == verify(registry).files
    changed = registry / CHECKPOINT_298
    changed.write_bytes(changed.read_bytes()[:-1] + b"\1")
    with pytest.raises(WeightsTampered):
        bring(registry, tmp_path / "third")
    assert not (tmp_path / "third" / MANIFEST_NAME).exists()


@pytest.mark.parametrize("what", ["nothing", "no model"])
def test_nothing_to_import_is_said(tmp_path: Path, registry: Path, what: str) -> None:
    source = tmp_path / what
    if what == "no model":
        source.mkdir()
        (source / "notes.txt").write_text("none")
    with pytest.raises(NotFound if what == "nothing" else BadArchive):
        bring(source, registry)


def test_the_same_archive_again_changes_nothing_and_other_bytes_are_refused(tmp_path: Path, registry: Path) -> None:
    archive = model_zip(tmp_path, 298, as_trained())
    bring(archive, registry)
    before = (registry / MANIFEST_NAME).read_bytes()
    assert bring(archive, registry)[0].unchanged
    assert (registry / MANIFEST_NAME).read_bytes() == before
    other = model_zip(tmp_path, 298, as_trained(1))
    with pytest.raises(WeightsTampered, match="--replace"):
        bring(other, registry)
    assert (registry / MANIFEST_NAME).read_bytes() == before
    assert not bring(other, registry, replacing=True)[0].unchanged
    state = torch.load(registry / CHECKPOINT_298, weights_only=True)
    assert torch.equal(state["network_weights"][FIRST_WEIGHT], network(1)[FIRST_WEIGHT])
    verify(registry)


def test_a_damaged_model_is_mended_by_the_archive_that_it_came_from(tmp_path: Path, registry: Path) -> None:
    archive = model_zip(tmp_path, 298, as_trained())
    bring(archive, registry)
    before = states(registry)
    (registry / CHECKPOINT_298).write_bytes(b"changed")
    with pytest.raises(WeightsTampered):
        verify(registry)
    assert not bring(archive, registry)[0].unchanged
    assert states(registry) == before


def test_models_that_a_manifest_was_written_for_are_pinned_too(tmp_path: Path, registry: Path) -> None:
    files = {name: content for name, content in model_files(298).items() if "pkl" not in name}
    write_models(registry, files)
    write_manifest(registry, synthetic=False)
    with pytest.raises(WeightsTampered, match="pinned"):
        bring(model_zip(tmp_path, 298, plain(298, 1)), registry)
    bring(model_zip(tmp_path, 298, plain(298, 1)), registry, replacing=True)
    verify(registry)
    write_manifest(registry, synthetic=False)
    assert "imported" in json.loads((registry / MANIFEST_NAME).read_text())
    with pytest.raises(WeightsTampered, match="pinned"):
        bring(model_zip(tmp_path, 298, plain(298, 2)), registry)


def test_a_digest_that_the_site_gives_is_asked_for(tmp_path: Path, registry: Path) -> None:
    archive = model_zip(tmp_path, 298)
    with pytest.raises(WeightsTampered, match="not the one that was given"):
        bring(archive, registry, digest=sha256(b"another"))
    assert not (registry / MANIFEST_NAME).exists()
    bring(archive, registry, digest=sha256(archive.read_bytes()))


def test_demo_weights_do_not_come_in_by_a_door_of_the_site(tmp_path: Path, registry: Path) -> None:
    marked = model_zip(tmp_path, 298, description="SYNTHETIC phantom weights")
    unmarked = next(weights_dir().glob("Dataset298*/*/fold_0/checkpoint_final.pth")).read_bytes()
    disguised = model_zip(tmp_path, 297, unmarked)
    for archive in (marked, disguised):
        with pytest.raises(BadArchive, match="DEMO WEIGHTS"):
            bring(archive, registry)
        assert not (registry / MANIFEST_NAME).exists()
    demo = load({}, data_dir=tmp_path / "data", profile="demo")
    bring(marked, registry, settings=demo)
    assert read_manifest(registry).synthetic


def test_a_licensed_model_needs_the_sites_licence(tmp_path: Path, registry: Path) -> None:
    archive = model_zip(tmp_path, 481)
    with pytest.raises(LicenceRequired, match="license-academic"):
        bring(archive, registry)
    assert not (registry / MANIFEST_NAME).exists()
    number = "n" * 18
    bring(archive, registry, settings=site(tmp_path, totalsegmentator_licence=number))
    manifest = (registry / MANIFEST_NAME).read_text()
    assert number not in manifest and "TotalSegmentator licence" in manifest


def test_two_at_once_are_refused(registry: Path) -> None:
    with install.opened(registry), pytest.raises(AlreadyRunning), install.opened(registry):
        pass
    with install.opened(registry):
        pass


DIE = """
import os, sys
from pathlib import Path
from heimdallr_ray.segmentation import install, unpack, weights
step, registry, archive = int(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
done = 0
def counted(original):
    def call(*args, **kwargs):
        global done
        done += 1
        if done == step:
            os._exit(99)
        return original(*args, **kwargs)
    return call
install.fsync_folder = counted(install.fsync_folder)
weights.fsync_folder = counted(weights.fsync_folder)
Path.rename = counted(Path.rename)
Path.replace = counted(Path.replace)
Path.unlink = counted(Path.unlink)
Path.mkdir = counted(Path.mkdir)
with install.opened(registry) as opened:
    places = unpack.unpack_zip(archive, opened.staging)
    opened.install(places, install.Source("a.zip", "", "now"), lambda path: False, lambda *_: None, replace=True)
print(done)
"""


def die(step: int, registry: Path, archive: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DIE, str(step), str(registry), str(archive)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_killed_at_any_moment_the_registry_holds_and_the_next_command_finds_the_old_one(tmp_path: Path) -> None:
    """Dies before every step that changes a name on the disk, on the way from one set of bytes to another."""
    old = model_zip(tmp_path, 298, plain(298, 1)).rename(tmp_path / "old.zip")
    new = model_zip(tmp_path, 298, plain(298, 2))
    neighbour = model_zip(tmp_path, 297, plain(297, 3))
    whole = tmp_path / "whole"
    bring(old, whole)
    bring(neighbour, whole)
    undisturbed = _copy(whole, tmp_path / "count")
    steps = int(die(0, undisturbed, new).stdout)
    assert (undisturbed / CHECKPOINT_298).read_bytes() == plain(298, 2)
    assert steps >= 12
    for step in range(1, steps + 1):
        registry = _copy(whole, tmp_path / f"step{step}")
        assert die(step, registry, new).returncode == 99
        found = verify(registry)
        assert found.has_folder(spec_of(297).folder)
        with install.opened(registry):
            pass
        assert (registry / CHECKPOINT_298).read_bytes() == plain(298, 1)
        assert CHECKPOINT_298 in verify(registry).files
        assert not list((registry / WORK_FOLDER).glob("*/*"))
        if step == steps // 2:
            assert not bring(new, registry, replacing=True)[0].unchanged
            assert (registry / CHECKPOINT_298).read_bytes() == plain(298, 2)


def _copy(source: Path, target: Path) -> Path:
    subprocess.run(["cp", "-a", str(source), str(target)], check=True)
    return target


def test_a_failure_in_the_middle_of_a_replacement_is_undone_at_once(
    tmp_path: Path, registry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bring(model_zip(tmp_path, 298, plain(298, 1)), registry)
    before = states(registry)
    real = install.store_document
    calls: list[int] = []

    def full(folder: Path, document: Any) -> Path:
        calls.append(1)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(folder, document)

    monkeypatch.setattr(install, "store_document", full)
    with pytest.raises(HeimdallrError, match="No space"):
        bring(model_zip(tmp_path, 298, plain(298, 2)), registry, replacing=True)
    assert len(calls) > 3
    assert states(registry) == before


def test_tidying_twice_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(as_trained())
    assert tidy_checkpoint(path)
    first = path.read_bytes()
    assert not tidy_checkpoint(path)
    assert path.read_bytes() == first and len(first) < len(as_trained())
