"""What a site asks of its images beside its measurements, and which models that may ever need. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.segmentation.planner import Extra, Need, Wanted, in_order, rows_of
from heimdallr_ray.segmentation.tasks import FIRST_PASS, TASKS, task_spec


def extras(names: Iterable[str]) -> tuple[Extra, ...]:
    """The further segmentations that a site asks for, each once.

    Raises:
        BadSetting: a name is none of the task table.
    """
    asked = tuple(dict.fromkeys(names))
    unknown = [name for name in asked if name not in TASKS]
    if unknown:
        raise BadSetting(f"segmentations: there is no {', '.join(map(repr, unknown))}; known are {', '.join(TASKS)}")
    return tuple(map(Extra, asked))


def askable(wanted: Iterable[Wanted], runnable: Collection[str]) -> tuple[str, ...]:
    """Tasks that some image can make run for `wanted`, what they are cropped by and the first pass among them.

    Where several rows give one label map, only the first that can run ever does, as in `plan`.

    Args:
        wanted: of images of all modalities.
        runnable: tasks that are installed and may run here.
    """
    asked = [row for one in wanted for row in _rows(one, runnable)]
    first = (FIRST_PASS,) if any(TASKS[name].modality == "CT" for name in asked) else ()
    return in_order(name for task in (*first, *asked) for name in _with_rough(task) if name in runnable)


def _rows(one: Wanted, runnable: Collection[str]) -> Iterator[str]:
    if not isinstance(one, Need):
        yield one.task if isinstance(one, Extra) else one
        return
    for label_map in (name for alternative in one.alternatives for name in alternative):
        yield from [row for row in rows_of(label_map) if row in runnable][:1]


def _with_rough(name: str) -> tuple[str, ...]:
    spec = task_spec(name)
    others = ((spec.crop.task,) if spec.crop else ()) + spec.needs
    return (*(rough for other in others for rough in _with_rough(other)), name)
