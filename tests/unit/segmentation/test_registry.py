"""Where weights come from, what a registry has of each task, and the command that brings what it lacks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
from totalsegmentator import map_tasks_config
from totalsegmentator.map_to_binary import commercial_models

from heimdallr_ray.errors import Broken, LicenceRequired, ModelOverBudget, NotFound, WeightsMissing
from heimdallr_ray.pipelines.demand import demand_of
from heimdallr_ray.segmentation import registry
from heimdallr_ray.segmentation.archives import ARCHIVES, RELEASES, Archive, archive_named, archive_of, fetch_command
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.licence import ACADEMIC_PAGE, LICENSED, NON_COMMERCIAL, OPEN, require_licence, terms_of
from heimdallr_ray.segmentation.planner import Demand, possible_too
from heimdallr_ray.segmentation.registry import ModelState
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TASKS, TOTAL_FAST, models_of
from heimdallr_ray.segmentation.weights import MANIFEST_NAME, read_manifest, write_manifest

UPSTREAM = cast("dict[Any, dict[str, Any]]", map_tasks_config.TASK_ID_WEIGHTS_CONFIGS)
UNRELEASED = "TODO"  # upstream's word for it


def test_the_table_is_that_of_the_installed_totalsegmentator() -> None:
    offered = {
        number: row for number, row in UPSTREAM.items() if isinstance(number, int) and row.get("version") != UNRELEASED
    }
    assert set(ARCHIVES) == set(offered)
    for number, archive in ARCHIVES.items():
        assert archive.folder == offered[number]["foldername"]
        assert archive.release == offered[number].get("version", "")
        assert "rel_path" not in offered[number]


def test_every_licensed_model_and_no_other_is_asked_from_the_licence_server() -> None:
    # Upstream's own download turns the table around: of two tasks with one model the later one names it.
    name_of = {number: task for task, number in commercial_models.items()}
    assert {n for n, archive in ARCHIVES.items() if archive.licensed} == set(name_of)
    for number, task in name_of.items():
        assert archive_of(number).licence_task == task
        assert archive_of(number).address == "https://backend.totalsegmentator.com/download_weights"


def test_open_models_come_from_upstreams_releases() -> None:
    assert archive_of(298).address == (f"{RELEASES}/v2.0.0-weights/Dataset298_TotalSegmentator_total_6mm_1559subj.zip")
    assert archive_of(298).mirrored("https://mirror.example/weights/") == (
        "https://mirror.example/weights/Dataset298_TotalSegmentator_total_6mm_1559subj.zip"
    )


@pytest.mark.parametrize("row", TASKS.values(), ids=lambda row: row.name)
def test_every_model_of_every_task_has_an_archive_with_its_terms(row: Any) -> None:
    for model in row.models:
        archive = archive_of(model.dataset_id)
        assert archive.folder == model.dataset_folder and archive_named(archive.folder) is archive
        assert (terms_of(archive) is LICENSED) == row.licence
    assert {archive.dataset_id for archive in registry.archives_for(row.name)} >= {m.dataset_id for m in row.models}


def test_every_archive_is_of_a_task_by_which_it_can_be_judged() -> None:
    assert set(ARCHIVES) == {model.dataset_id for row in TASKS.values() for model in row.models}


def test_terms() -> None:
    assert terms_of(archive_of(297)) is OPEN and terms_of(archive_of(481)) is LICENSED
    assert terms_of(archive_of(615)) is NON_COMMERCIAL


def test_a_licensed_model_is_refused_without_the_sites_licence_and_the_words_say_where_to_get_one() -> None:
    archives = (archive_of(297), archive_of(481))
    with pytest.raises(LicenceRequired, match=ACADEMIC_PAGE) as caught:
        require_licence(archives, licensed=False)
    assert "Dataset481_tissue_1559subj" in caught.value.detail and "Dataset297" not in caught.value.detail
    assert "HEIMDALLR_TOTALSEGMENTATOR_LICENCE" in caught.value.detail
    require_licence(archives, licensed=True)
    require_licence(archives[:1], licensed=False)


def numbers(archives: tuple[Archive, ...]) -> list[int]:
    return [archive.dataset_id for archive in archives]


def test_a_ct_task_brings_the_first_pass_and_what_it_is_cropped_with() -> None:
    assert numbers(registry.archives_for(TOTAL_FAST)) == [298, 297]
    assert numbers(registry.archives_for("total")) == [298, 291, 292, 293, 294, 295]
    assert numbers(registry.archives_for("cerebral_bleed")) == [298, 150]
    assert numbers(registry.archives_for("total_mr_fast")) == [852]
    assert set(numbers(registry.archives_for("liver_lesions"))) == {298, 297, 591}
    assert numbers(registry.archives_for("113")) == numbers(registry.archives_for("Dataset113_ToothFairy3")) == [113]


@pytest.mark.parametrize("name", ["total_slow", "955", "99999", "", "../total", "9" * 500])
def test_an_unknown_name_is_refused(name: str) -> None:
    with pytest.raises(NotFound):
        registry.archives_for(name)


def test_the_command_can_be_copied_into_a_shell() -> None:
    assert fetch_command(["total_fast", "total", "total_fast"]) == "heimdallr models fetch total_fast total"
    assert fetch_command(["total"], Path("/a b/$x")) == "heimdallr models fetch total --into '/a b/$x'"
    words = registry.missing_words((FIRST_PASS, TOTAL_FAST))
    assert words.endswith("run: heimdallr models fetch total_fast")
    assert "Dataset298_" in words and "Dataset297_" in words
    assert registry.missing_words((FIRST_PASS,)).endswith("run: heimdallr models fetch total_fastest")


def registry_with(folder: Path, *tasks: str) -> Path:
    """Tiny files in the places of the checkpoints that `tasks` need."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in tasks:
        for model in models_of(name):
            file = folder / model.checkpoint
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(model.checkpoint.encode())
    write_manifest(folder, synthetic=False)
    return folder


def test_no_registry_lacks_everything_and_says_what_to_run(tmp_path: Path) -> None:
    assert registry.missing_needed(None, Demand()) == (FIRST_PASS, TOTAL_FAST)
    assert {entry.state for entry in registry.overview(None)} == {ModelState.MISSING}
    with pytest.raises(WeightsMissing, match=rf"heimdallr models fetch total_fast --into {tmp_path}$"):
        registry.require_needed(tmp_path, Demand())


ALL = demand_of(())
BLEED = demand_of(("intracranial_hemorrhage_volume",))
MUSCLE = demand_of(("l3_muscle_area", "liver_volume"))


@pytest.mark.parametrize(
    ("tasks", "demand", "absent"),
    [
        ((), ALL, (FIRST_PASS, TOTAL_FAST)),
        ((FIRST_PASS,), ALL, (TOTAL_FAST,)),
        ((TOTAL_FAST,), ALL, (FIRST_PASS,)),
        ((FIRST_PASS, TOTAL_FAST), ALL, ()),
        ((FIRST_PASS, "total"), ALL, ()),
        (("total_mr_fast",), ALL, ()),
        (("total_mr",), ALL, ()),
        (("total_mr_fastest",), ALL, (FIRST_PASS, TOTAL_FAST)),
        (("total_mr_fast", TOTAL_FAST), ALL, (FIRST_PASS,)),
        (("cerebral_bleed",), ALL, (TOTAL_FAST,)),
        ((FIRST_PASS, TOTAL_FAST), BLEED, ("cerebral_bleed",)),
        ((FIRST_PASS, "total", "cerebral_bleed"), BLEED, ()),
        (("total_mr",), BLEED, (FIRST_PASS, "cerebral_bleed", TOTAL_FAST)),
        ((FIRST_PASS, TOTAL_FAST), MUSCLE, ("tissue_types",)),
        ((FIRST_PASS, "total", "tissue_types"), MUSCLE, ()),
    ],
)
def test_a_registry_serves_what_the_site_measures_or_says_what_it_lacks(
    tmp_path: Path, tasks: tuple[str, ...], demand: Demand, absent: tuple[str, ...]
) -> None:
    folder = registry_with(tmp_path / "weights", *tasks)
    weights = read_manifest(folder)
    assert registry.missing_needed(weights, demand) == absent
    if absent:
        asked = " ".join(name for name in absent if name != FIRST_PASS) or FIRST_PASS
        with pytest.raises(WeightsMissing, match=f"run: heimdallr models fetch {asked} --into {folder}"):
            registry.require_needed(folder, demand)
    else:
        registry.require_needed(folder, demand)
        registry.require_served(demand, registry.installed_tasks(weights), {}, {})


def test_a_segmenter_whose_needed_model_is_set_aside_is_not_ready_and_says_why() -> None:
    with pytest.raises(Broken, match="Dataset297 is damaged"):
        registry.require_served(ALL, (FIRST_PASS,), {TOTAL_FAST: "Dataset297 is damaged"}, {})
    registry.require_served(ALL, (FIRST_PASS, TOTAL_FAST), {"trunk_cavities": "Dataset343 is damaged"}, {})
    with pytest.raises(WeightsMissing, match="fetch total_fast"):
        registry.require_served(ALL, (FIRST_PASS,), {}, {})
    with pytest.raises(ModelOverBudget, match="297 is too large"):
        registry.require_served(ALL, (FIRST_PASS,), {}, {TOTAL_FAST: "297 is too large"})
    registry.require_served(ALL, (FIRST_PASS, "total"), {}, {TOTAL_FAST: "297 is too large"})


@pytest.mark.parametrize(
    ("tasks", "modalities"),
    [(("total_mr",), {"MR"}), (("total_mr_fast", FIRST_PASS), {"CT", "MR"}), ((FIRST_PASS,), {"CT"}), ((), set())],
)
def test_which_images_the_installed_models_read(tmp_path: Path, tasks: tuple[str, ...], modalities: set[str]) -> None:
    assert registry.modalities_read(registry_with(tmp_path / "weights", *tasks)) == modalities


def test_what_further_measurements_would_need_is_told_apart() -> None:
    assert possible_too(ALL, (FIRST_PASS, TOTAL_FAST)) == ("cerebral_bleed", "tissue_types")
    assert possible_too(BLEED, (FIRST_PASS, TOTAL_FAST)) == ()


def test_a_model_is_there_when_all_its_folds_are(tmp_path: Path) -> None:
    several = next(row for row in TASKS.values() if row.models[0].folds and len(row.models[0].folds) > 1)
    folder = registry_with(tmp_path / "weights", several.name)
    assert not registry.has_model(read_manifest(folder), several.models[0])
    for fold in several.models[0].folds or ():
        file = folder / several.models[0].checkpoint_of(fold)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"x")
    write_manifest(folder, synthetic=False)
    weights = read_manifest(folder)
    assert registry.has_model(weights, several.models[0])
    entry = next(one for one in registry.overview(weights) if one.task == several.name)
    assert [name for name, _ in entry.models[-1].checkpoints] == [
        f"fold_{fold}/checkpoint_final.pth" for fold in several.models[0].folds or ()
    ]


def test_the_overview_tells_installed_missing_and_synthetic(tmp_path: Path) -> None:
    folder = registry_with(tmp_path / "weights", TOTAL_FAST)
    demo = models_of(FIRST_PASS)[0]
    shutil.copytree(weights_dir() / demo.dataset_folder, folder / demo.dataset_folder)
    write_manifest(folder, synthetic=False)
    manifest = folder / MANIFEST_NAME
    manifest.write_text(manifest.read_text().replace('"synthetic": true', '"synthetic": false'))
    found = {entry.task: entry for entry in registry.overview(read_manifest(folder))}
    assert found[FIRST_PASS].state is ModelState.SYNTHETIC
    assert found[TOTAL_FAST].state is ModelState.INSTALLED
    assert found["total"].state is ModelState.MISSING and found["total"].size_bytes == 0
    (model,) = found[TOTAL_FAST].models
    assert model.size_bytes == len(models_of(TOTAL_FAST)[0].checkpoint) and [
        len(digest) for _, digest in model.checkpoints
    ] == [64]
    assert found["tissue_types"].licence and not found["total"].licence
