"""Which tasks one study is worth, in which order, and why each other one does not run. Pure: no torch, no disk."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from heimdallr_ray.errors import ModalityNotSupported
from heimdallr_ray.segmentation.archives import fetch_command
from heimdallr_ray.segmentation.specs import TaskSpec
from heimdallr_ray.segmentation.tasks import (
    CEREBRAL_BLEED,
    FIRST_PASS,
    TASKS,
    TISSUE_TYPES,
    TOTAL_FAST,
    TOTAL_MR_FAST,
    models_of,
    task_spec,
)

DEFAULT_WANTED: Final = (TOTAL_FAST, CEREBRAL_BLEED, TISSUE_TYPES)
"""What a CT study is offered; the plan leaves out what its anatomy, licence or weights do not allow."""

BRAIN_ML: Final = 100.0
"""Less brain than this is the edge of a neck or chest scan; a head has over 1,000 ml."""
LUMBAR_ML: Final = 20.0
"""Body composition is read at L3; one lumbar vertebra has 40 to 80 ml, so less than this is stray voxels."""
ANYTHING_ML: Final = 1.0
LUMBAR: Final = ("vertebrae_L1", "vertebrae_L2", "vertebrae_L3", "vertebrae_L4", "vertebrae_L5")


@dataclass(frozen=True)
class _Anatomy:
    """What must be in the image for a task to say anything."""

    name: str
    structures: tuple[str, ...]
    least_ml: float


_BRAIN: Final = _Anatomy("brain", ("brain",), BRAIN_ML)
_LUMBAR: Final = _Anatomy("lumbar spine", LUMBAR, LUMBAR_ML)
_KIDNEYS: Final = _Anatomy("kidneys", ("kidney_left", "kidney_right"), ANYTHING_ML)
_ANATOMY: Final[Mapping[str, _Anatomy]] = {
    CEREBRAL_BLEED: _BRAIN,
    "ventricle_parts": _BRAIN,
    "brain_structures": _BRAIN,
    TISSUE_TYPES: _LUMBAR,
    "tissue_4_types": _LUMBAR,
    "abdominal_muscles": _LUMBAR,
    # The box is cut around four more organs, but without a kidney there is no cyst of one.
    "kidney_cysts": _KIDNEYS,
}
"""Tasks that need more than a crumb of what they crop to, or something else."""
_SEEN_BY_FIRST_PASS: Final = frozenset({FIRST_PASS, TOTAL_FAST})
"""Their structures are those of the first pass: what it did not see, a task cropped to them does not either."""

_SERVED_BY: Final[Mapping[str, tuple[str, ...]]] = {
    "total": (TOTAL_FAST, "total"),
    "total_mr": (TOTAL_MR_FAST, "total_mr"),
    "body": ("body", "body_fast"),
}
"""Rows whose label maps bear the same name, the preferred one first: 3 mm is what the organ measurements were gated
for; the five parts at 1.5 mm stand in where it is not installed. 6 mm is for finding out, never for measuring."""


class LeftOutCode(StrEnum):
    """Why a wanted task does not run."""

    ANATOMY_ABSENT = "anatomy_absent"
    LICENCE = "licence"
    WEIGHTS_MISSING = "weights_missing"
    MODALITY = "modality"
    OVER_MEMORY_BUDGET = "over_memory_budget"
    MODEL_UNUSABLE = "model_unusable"
    OUT_OF_TIME = "out_of_time"
    VERTEBRAE_JOINED = "vertebrae_joined"
    FAILED = "failed"
    """It ran and did not end well."""

    @classmethod
    def of(cls, error_code: str) -> LeftOutCode:
        """The code of an error that ended a task, or `FAILED` where it has none of its own here."""
        return next((one for one in cls if one == error_code), cls.FAILED)


@dataclass(frozen=True)
class LeftOut:
    """A task that does not run, and the reason for a person."""

    task: str
    code: LeftOutCode
    detail: str


@dataclass(frozen=True)
class Plan:
    """Tasks to run, in order, and those left out.

    Attributes:
        run: tasks; those of `extra` last, so that they take no time from the others.
        left_out: tasks that were asked for and are not run, or did not end well.
        extra: those of `run` from which nothing is made; the study goes on without one that fails.
    """

    run: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    extra: tuple[str, ...] = ()

    def without(self, failed: Collection[LeftOut]) -> Plan:
        """The plan as it came out: tasks of `extra` that did not end well are left out."""
        names = {one.task for one in failed}
        return Plan(
            tuple(name for name in self.run if name not in names),
            (*self.left_out, *failed),
            tuple(name for name in self.extra if name not in names),
        )


@dataclass(frozen=True)
class Need:
    """What one purpose is made from.

    Attributes:
        name: of the purpose; a measurement's.
        alternatives: sets of label maps, by TotalSegmentator's task names, that would do; the preferred set first.
            `total` stands for whichever row of that name can run.
    """

    name: str
    alternatives: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Extra:
    """A task whose labels a person wants to see; nothing is made from them."""

    task: str


MR_WANTED: Final = (Need("anatomy", (("total_mr",),)),)
"""What an MR study is offered where no measurement is made on MR."""


@dataclass(frozen=True)
class Demand:
    """What a site measures, and so what its registry has to serve.

    Attributes:
        needs: of its measurements.
        named: the site has named them, and each has to be possible. Else those that need the anatomy alone have to be,
            and the others are left out where their models or licences are not there.
    """

    needs: tuple[Need, ...] = (Need("anatomy", (("total",),)),)
    named: bool = False


Wanted = str | Need | Extra
"""A task by its name, a purpose whose tasks the plan picks, or a task that may fail."""


def wanted_for(modality: str, needs: Sequence[Need], further: Sequence[Extra] = ()) -> tuple[Wanted, ...]:
    """What is asked for of an image: the tasks of its measurements, or its anatomy where MR has none, and `further`."""
    return (*(tuple(needs) if needs or modality != "MR" else MR_WANTED), *further)


def first_pass(modality: str, available: Collection[str]) -> str | None:
    """The task that finds out what is in the image, or None where the modality needs none.

    Raises:
        ModalityNotSupported: no installed model reads this modality.
    """
    if modality == "CT":
        return FIRST_PASS
    if modality == "MR" and reads_mr(available):
        return None
    raise ModalityNotSupported(f"no installed model reads {modality or 'an unknown modality'}")


def reads_mr(available: Collection[str]) -> bool:
    """True where a row that gives the anatomy of MR is among `available`."""
    return any(row in available for row in _SERVED_BY["total_mr"])


def _lacking_for(need: Need, available: Collection[str]) -> tuple[str, ...]:
    """The preferred rows of what is not there for the need's preferred set; empty where another set is whole."""
    absent = [
        tuple(rows[0] for rows in map(rows_of, label_maps) if not any(row in available for row in rows))
        for label_maps in need.alternatives
    ]
    return absent[0] if absent and all(absent) else ()


def rows_of(label_map: str) -> tuple[str, ...]:
    """The rows that give a label map, the preferred one first."""
    return _SERVED_BY.get(label_map, (label_map,))


def _anatomy_alone(need: Need) -> bool:
    return any(all(one in _SERVED_BY for one in label_maps) for label_maps in need.alternatives)


def lacking(demand: Demand, available: Collection[str]) -> tuple[str, ...]:
    """The tasks without which a site cannot be served, in order; empty where it can.

    A site that has named no measurement is served by MR alone as well, where nothing for CT is there.

    Args:
        demand: of the site.
        available: tasks that can run.
    """
    needs = [need for need in demand.needs if demand.named or _anatomy_alone(need)]
    rows = {row for need in needs for label_maps in need.alternatives for one in label_maps for row in rows_of(one)}
    ct = any(TASKS[row].modality == "CT" for row in rows)
    first = (FIRST_PASS,) if ct and FIRST_PASS not in available else ()
    absent = dict.fromkeys((*first, *(row for need in needs for row in _lacking_for(need, available))))
    if not demand.named and reads_mr(available) and not any(TASKS[name].modality == "CT" for name in available):
        return ()
    return tuple(absent)


def possible_too(demand: Demand, available: Collection[str]) -> tuple[str, ...]:
    """The tasks that further measurements of the site would need, beside what it cannot do without."""
    absent = dict.fromkeys(row for need in demand.needs for row in _lacking_for(need, available))
    return tuple(row for row in absent if row not in lacking(demand, available))


def in_order(tasks: Iterable[str]) -> tuple[str, ...]:
    """Tasks, each once, as one device should run them: coarse before fine, one model before several; else as given.

    What the cropped tasks need as their rough segmentation so comes before them, and what a reader waits for first is
    not behind the five parts at 1.5 mm.
    """
    return tuple(sorted(dict.fromkeys(tasks), key=lambda name: _cost(TASKS[name])))


def _cost(spec: TaskSpec) -> int:
    if spec.fastest:
        return 0
    if spec.fast:
        return 1
    return 2 if len(spec.models) == 1 else 3


def _anatomy_reason(spec: TaskSpec, found_ml: Mapping[str, float]) -> str | None:
    anatomy = _ANATOMY.get(spec.name)
    if anatomy is None and spec.crop is not None and spec.crop.task in _SEEN_BY_FIRST_PASS:
        anatomy = _Anatomy(", ".join(spec.crop.structures), spec.crop.structures, ANYTHING_ML)
    if anatomy is not None:
        seen_ml = sum(found_ml.get(name, 0.0) for name in anatomy.structures)
        enough = seen_ml >= anatomy.least_ml
        return None if enough else f"{anatomy.name} {seen_ml:.0f} mL, needs {anatomy.least_ml:.0f} mL"
    return None if sum(found_ml.values()) >= ANYTHING_ML else "the model found no structure that it knows"


@dataclass(frozen=True)
class _Site:
    """What decides over a task: the image and this installation."""

    found_ml: Mapping[str, float]
    modality: str
    available: Collection[str]
    licensed: Collection[str]
    refused: Mapping[str, str]
    set_aside: Mapping[str, str]
    registry: Path | None

    def obstacle(self, name: str) -> LeftOut | None:
        """Why the task does not run, or None."""
        spec = task_spec(name)
        if spec.modality != self.modality:
            return LeftOut(name, LeftOutCode.MODALITY, f"reads {spec.modality}, the image is {self.modality}")
        absent = _anatomy_reason(spec, self.found_ml) if self.modality == "CT" else None
        if absent is not None:
            return LeftOut(name, LeftOutCode.ANATOMY_ABSENT, absent)
        if name in self.set_aside:
            return LeftOut(name, LeftOutCode.MODEL_UNUSABLE, self.set_aside[name])
        if name in self.refused:
            return LeftOut(name, LeftOutCode.OVER_MEMORY_BUDGET, self.refused[name])
        if name not in self.available:
            folders = ", ".join(model.dataset_folder for model in models_of(name))
            command = fetch_command((name,), self.registry)
            return LeftOut(name, LeftOutCode.WEIGHTS_MISSING, f"needs {folders}; run: {command}")
        if spec.licence and name not in self.licensed:
            return LeftOut(name, LeftOutCode.LICENCE, "needs a TotalSegmentator licence of the site")
        return None


def _resolved(label_map: str, site: _Site) -> tuple[str | None, list[LeftOut]]:
    """The row that gives a label map here, or None; and why the rows preferred to it, or the preferred one, do not."""
    obstacles: list[LeftOut] = []
    for row in rows_of(label_map):
        why = site.obstacle(row)
        if why is None:
            return row, obstacles
        obstacles.append(why)
    return None, obstacles[:1]


def _options(one: Wanted, site: _Site) -> Iterator[tuple[list[str], bool, list[LeftOut]]]:
    """Each set of tasks that would do: those of it that can run, whether these are all, and why others do not."""
    if not isinstance(one, Need):
        name = one.task if isinstance(one, Extra) else one
        why = site.obstacle(name)
        yield ([name], True, []) if why is None else ([], False, [why])
        return
    for label_maps in one.alternatives:
        found = [_resolved(label_map, site) for label_map in label_maps]
        rows = [row for row, _ in found if row is not None]
        yield rows, len(rows) == len(label_maps), [why for _, obstacles in found for why in obstacles]


def plan(
    found_volumes_ml: Mapping[str, float],
    modality: str,
    available_tasks: Collection[str],
    licensed: Collection[str],
    wanted: Iterable[Wanted] = DEFAULT_WANTED,
    refused: Mapping[str, str] | None = None,
    set_aside: Mapping[str, str] | None = None,
    registry: Path | None = None,
) -> Plan:
    """Which tasks run, and why each other one that was asked for does not.

    Of each need the first set whose tasks can all run is taken. Where none can, the tasks of its preferred set that
    can run do: a measurement says best itself what it lacks, and others may use them. A preferred task that was passed
    over for another is among those left out, with its reason.

    Args:
        found_volumes_ml: structure name to ml, from the first pass; not looked at for MR.
        modality: DICOM Modality (0008,0060) of the image.
        available_tasks: tasks whose model folders are installed and whose models can be used.
        licensed: tasks that may run here; open ones need not be named.
        wanted: tasks and needs.
        refused: tasks with a model that does not fit into the site's memory budget, to words that say so.
        set_aside: tasks with an installed model that cannot be built, to words that say so.
        registry: that a command which brings a model is to fill; None: that of the settings where it is typed.

    Raises:
        ModalityNotSupported: no installed model reads this modality.
        NotFound: a wanted task is not in the table.
    """
    first_pass(modality, available_tasks)
    asked = tuple(wanted)
    if modality == "MR" and asked == DEFAULT_WANTED:
        asked = MR_WANTED
    site = _Site(found_volumes_ml, modality, available_tasks, licensed, refused or {}, set_aside or {}, registry)
    needed: list[str] = []
    extra: list[str] = []
    left_out: dict[str, LeftOut] = {}
    for one in asked:
        preferred: list[str] = []
        for nth, (tasks, complete, obstacles) in enumerate(_options(one, site)):
            left_out.update((why.task, why) for why in obstacles)
            if complete:
                preferred = tasks
                break
            if nth == 0:
                preferred = tasks
        (extra if isinstance(one, Extra) else needed).extend(preferred)
    first, further = in_order(needed), in_order(name for name in extra if name not in needed)
    return Plan((*first, *further), tuple(left_out.values()), further)
