"""What a registry has of every task and may have, for `heimdallr models list`, `licence` and `verify`."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

from heimdallr_ray.config import Settings
from heimdallr_ray.errors import Broken, OutOfMemory, WeightsMissing, WeightsTampered
from heimdallr_ray.metrics.catalogue import CATALOGUE
from heimdallr_ray.operations import mending
from heimdallr_ray.operations.models import has_licence, wanted_archives
from heimdallr_ray.segmentation import registry as states
from heimdallr_ray.segmentation.licence import NON_COMMERCIAL, terms_of
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TASKS
from heimdallr_ray.segmentation.weights import WeightsSet, read_manifest, registry_to_fill

CHANGED: Final = "changed"
"""Listed in the manifest, and already by its size not what is listed."""
_SEEN_FIRST: Final = "every CT study: what is in the image"


def require_all_usable(weights: WeightsSet) -> None:
    """Every installed model of a known task can be built, as shapes only.

    Raises:
        Broken: names those that cannot, each with its reason.
        OutOfMemory: a checkpoint does not fit into the host's memory.
        WeightsMissing, WeightsTampered: as `WeightsSet.read`.
    """
    from heimdallr_ray.segmentation.totalseg.judge import require_usable

    faults: list[str] = []
    for model in dict.fromkeys(model for row in TASKS.values() for model in row.models):
        if states.has_model(weights, model):
            try:
                require_usable(weights, model)
            except (OutOfMemory, WeightsMissing, WeightsTampered):
                raise
            except Broken as error:
                faults.append(error.detail)
    if faults:
        raise Broken("; ".join(faults))


def weights_at(folder: Path) -> WeightsSet | None:
    """The registry at `folder`; None where there is none.

    Raises:
        WeightsTampered: its manifest is malformed.
    """
    try:
        return read_manifest(folder)
    except WeightsMissing:
        return None


def measured_from(task: str) -> tuple[str, ...]:
    """The measurements that can be made from the label map of a task."""
    if task == FIRST_PASS:
        return (_SEEN_FIRST,)
    label_map = TASKS[task].upstream_task
    return tuple(q.id for metric in CATALOGUE for q in metric.quantities if label_map in q.tasks)


def listing(folder: Path) -> list[dict[str, Any]]:
    """Every task as JSON: what the registry at `folder` has of it, and what it is good for.

    No file is hashed: one that is gone or has another size makes its task `changed`, other bytes are not seen.

    Raises:
        WeightsMissing, WeightsTampered: see `registry.overview`.
    """
    place, weights = registry_to_fill(folder), weights_at(folder)
    changed = mending.changed_models(weights, hashed=False) if weights is not None else ()
    return [_row(entry, place, changed) for entry in states.overview(weights)]


def _row(entry: states.TaskEntry, place: Path | None, changed: Collection[str]) -> dict[str, Any]:
    spoiled = any(model.folder in changed for model in entry.models)
    return {
        "task": entry.task,
        "state": CHANGED if spoiled else str(entry.state),
        "size_bytes": entry.size_bytes,
        "licence": "site" if entry.licence else "non-commercial" if _limited(entry.models) else "open",
        "measurements": list(measured_from(entry.task)),
        "models": [
            {
                "dataset": model.dataset_id,
                "folder": model.folder,
                "state": CHANGED if model.folder in changed else str(model.state),
                "size_bytes": model.size_bytes,
                "checkpoints": dict(model.checkpoints),
                "terms": model.terms.name,
            }
            for model in entry.models
        ],
        "command": "" if entry.state != states.ModelState.MISSING else states.command_for([entry.task], place),
    }


def _limited(models: Iterable[states.ModelEntry]) -> bool:
    return any(model.terms is NON_COMMERCIAL for model in models)


def licences(settings: Settings) -> list[dict[str, Any]]:
    """Every task as JSON: the terms of its models, and whether this site may run it. Never a licence number."""
    present = has_licence(settings)
    found: list[dict[str, Any]] = []
    for row in TASKS.values():
        archives = wanted_archives([row.name])
        terms = {terms_of(archive) for archive in archives}
        own = {terms_of(archive).name for archive in archives if archive.dataset_id in _own(row.name)}
        found.append(
            {
                "task": row.name,
                "terms": sorted(own),
                "needs_licence": row.licence,
                "non_commercial": NON_COMMERCIAL in terms,
                "may_run": present or not row.licence,
            }
        )
    return found


def _own(task: str) -> frozenset[int]:
    return frozenset(model.dataset_id for model in TASKS[task].models)
