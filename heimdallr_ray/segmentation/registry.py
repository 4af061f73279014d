"""What a registry holds of each task, what is missing, and the command that brings it. Pure but for the manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath
from typing import Final

from heimdallr_ray.errors import Broken, ModelOverBudget, NotFound, WeightsMissing
from heimdallr_ray.segmentation.archives import Archive, archive_named, archive_of, fetch_command
from heimdallr_ray.segmentation.licence import Terms, terms_of
from heimdallr_ray.segmentation.planner import Demand, lacking, reads_mr
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TASKS, ModelSpec, models_of
from heimdallr_ray.segmentation.weights import (
    CHECKPOINT_SUFFIX,
    DATASET_NAME,
    MANIFEST_NAME,
    WeightsSet,
    demo_checkpoints,
    is_marked,
    read_manifest,
)

_MAX_NUMBER_DIGITS: Final = 4


class ModelState(StrEnum):
    """What a registry has of a task or of a model."""

    INSTALLED = "installed"
    MISSING = "missing"
    SYNTHETIC = "synthetic"


@dataclass(frozen=True)
class ModelEntry:
    """One model in a registry.

    Attributes:
        dataset_id: number of the data set.
        folder: of the data set.
        state: whether the manifest lists it, and whether it was made from phantoms.
        size_bytes: of its files; 0 where it is missing.
        checkpoints: file of each fold, relative to the model's folder, and its sha256; empty where it is missing.
        terms: that its weights come under.
    """

    dataset_id: int
    folder: str
    state: ModelState
    size_bytes: int
    checkpoints: tuple[tuple[str, str], ...]
    terms: Terms


@dataclass(frozen=True)
class TaskEntry:
    """One task and the models that it needs, the rough one for cropping included."""

    task: str
    models: tuple[ModelEntry, ...]
    licence: bool
    """It may run only with a licence of the site."""

    @property
    def state(self) -> ModelState:
        """Missing where any model is; synthetic where any is."""
        states = {model.state for model in self.models}
        for state in (ModelState.MISSING, ModelState.SYNTHETIC):
            if state in states:
                return state
        return ModelState.INSTALLED

    @property
    def size_bytes(self) -> int:
        """Of all its models."""
        return sum(model.size_bytes for model in self.models)


def has_model(weights: WeightsSet, model: ModelSpec) -> bool:
    """The manifest lists every checkpoint of the model."""
    checkpoints = model.checkpoints(weights.files)
    return bool(checkpoints) and all(name in weights.files for name in checkpoints)


def _checkpoints(weights: WeightsSet, folder: str) -> list[str]:
    prefix = f"{folder}/"
    return sorted(name for name in weights.files if name.startswith(prefix) and name.endswith(CHECKPOINT_SUFFIX))


def _is_synthetic(weights: WeightsSet, folder: str) -> bool:
    if weights.synthetic or any(
        weights.files[name].sha256 in demo_checkpoints() for name in _checkpoints(weights, folder)
    ):
        return True
    description = f"{folder}/{DATASET_NAME}"
    return description in weights.files and is_marked(weights.read(description), description)


def _entry(weights: WeightsSet | None, model: ModelSpec) -> ModelEntry:
    terms = terms_of(archive_of(model.dataset_id))
    if weights is None or not has_model(weights, model):
        return ModelEntry(model.dataset_id, model.dataset_folder, ModelState.MISSING, 0, (), terms)
    files = {name: entry for name, entry in weights.files.items() if name.startswith(f"{model.folder}/")}
    return ModelEntry(
        model.dataset_id,
        model.dataset_folder,
        ModelState.SYNTHETIC if _is_synthetic(weights, model.folder) else ModelState.INSTALLED,
        sum(entry.size_bytes for entry in files.values()),
        tuple((name[len(model.folder) + 1 :], str(files[name].sha256)) for name in model.checkpoints(weights.files)),
        terms,
    )


def overview(weights: WeightsSet | None) -> tuple[TaskEntry, ...]:
    """Every task of the table and what `weights` has of it; None: there is no registry.

    Raises:
        WeightsMissing, WeightsTampered: a listed dataset.json cannot be read, or is not the one of the manifest.
    """
    return tuple(
        TaskEntry(row.name, tuple(_entry(weights, model) for model in models_of(row.name)), row.licence)
        for row in TASKS.values()
    )


def installed_tasks(weights: WeightsSet) -> tuple[str, ...]:
    """Tasks of which every model is there."""
    return tuple(name for name in TASKS if all(has_model(weights, model) for model in models_of(name)))


def modalities_read(folder: Path) -> frozenset[str] | None:
    """DICOM modalities that the installed models can read; None where the weights do not lie on this machine.

    Raises:
        WeightsMissing, WeightsTampered: the manifest cannot be read.
    """
    if not (folder / MANIFEST_NAME).is_file():
        return None
    weights = read_manifest(folder)
    installed = installed_tasks(weights)
    read = {"CT": FIRST_PASS in installed, "MR": reads_mr(installed)}
    return frozenset(modality for modality, reads in read.items() if reads)


def registry_digest(folder: Path) -> str:
    """Digest of what the registry lists; empty where the weights do not lie on this machine."""
    manifest = folder / MANIFEST_NAME
    return hashlib.sha256(manifest.read_bytes()).hexdigest() if manifest.is_file() else ""


def archives_for(name: str) -> tuple[Archive, ...]:
    """What has to be installed for `name`: a task, the number of a data set, or its folder.

    A CT task brings the first pass along, which decides whether it runs at all.

    Raises:
        NotFound: none of these.
    """
    if name.isdecimal() and len(name) <= _MAX_NUMBER_DIGITS:
        return (archive_of(int(name)),)
    named = archive_named(name)
    if named is not None:
        return (named,)
    if name not in TASKS:
        raise NotFound(f"no segmentation task {name!r}; known are {', '.join(TASKS)}")
    first = models_of(FIRST_PASS) if TASKS[name].modality == "CT" else ()
    numbers = dict.fromkeys(model.dataset_id for model in (*first, *models_of(name)))
    return tuple(archive_of(number) for number in numbers)


def has_archive(weights: WeightsSet, archive: Archive) -> bool:
    """The manifest lists a checkpoint of the archive's folder."""
    return bool(_checkpoints(weights, archive.folder))


def missing_needed(weights: WeightsSet | None, demand: Demand) -> tuple[str, ...]:
    """The tasks without which the registry does not serve what the site measures; None: there is no registry."""
    return lacking(demand, installed_tasks(weights) if weights is not None else ())


def missing_words(tasks: Iterable[str], into: Path | None = None) -> str:
    """Which of TotalSegmentator's folders `tasks` need, and the command that brings them."""
    names = tuple(tasks)
    folders = dict.fromkeys(model.dataset_folder for name in names for model in models_of(name))
    return f"needs {', '.join(folders)}; run: {command_for(names, into)}"


def command_for(tasks: Iterable[str], into: Path | None = None) -> str:
    """The line that installs `tasks`; the first pass comes with every CT task, so it is named only alone."""
    names = tuple(tasks)
    return fetch_command(tuple(name for name in names if name != FIRST_PASS) or names, into)


def require_needed(folder: Path, demand: Demand) -> WeightsSet:
    """The registry, which has what a Segmenter of the site needs to be ready; nothing is hashed.

    Raises:
        WeightsMissing: there is no registry, or it lacks a needed model; says which command brings it.
        WeightsTampered: the manifest is malformed.
    """
    if not (folder / MANIFEST_NAME).exists():
        absent = missing_needed(None, demand)
        raise WeightsMissing(f"no {MANIFEST_NAME} in the weights folder; {missing_words(absent, folder)}")
    weights = read_manifest(folder)
    absent = missing_needed(weights, demand)
    if absent:
        raise WeightsMissing(f"{', '.join(absent)} not installed; {missing_words(absent, folder)}")
    return weights


def require_served(
    demand: Demand, available: Collection[str], set_aside: Mapping[str, str], over_budget: Mapping[str, str]
) -> None:
    """Nothing happens where a Segmenter that has loaded its models serves the site.

    Args:
        demand: of the site.
        available: tasks that can run.
        set_aside: tasks with a model that is installed and cannot be built, and why.
        over_budget: tasks with a model that does not fit into the memory budget, and why.

    Raises:
        Broken: a task that the site cannot do without is set aside.
        ModelOverBudget: it does not fit into the budget; says which setting to change.
        WeightsMissing: it is not installed.
    """
    absent = lacking(demand, available)
    why = dict.fromkeys(set_aside[name] for name in absent if name in set_aside)
    if why:
        raise Broken("; ".join(why))
    why = dict.fromkeys(over_budget[name] for name in absent if name in over_budget)
    if why:
        raise ModelOverBudget("; ".join(why))
    if absent:
        raise WeightsMissing(f"{', '.join(absent)} not installed; {missing_words(absent)}")


def folder_of(relative: str) -> str:
    """The data set's folder of a path in a manifest."""
    return PurePosixPath(relative).parts[0]
