"""What the second task of a study does not do again: seconds, and calls that are counted from outside the engine."""

from __future__ import annotations

import statistics
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from bench import nets
from bench.segment_peers import fresh, warm_engine
from heimdallr_ray.segmentation.tasks import FIRST_PASS

if TYPE_CHECKING:
    from heimdallr_ray.segmentation.engine import Segmentation
    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine

TASKS = ("trunk_cavities", "vertebrae_body")
"""Two uncropped tasks at one spacing, in the planner's order."""
REGISTRY = {FIRST_PASS: nets.PATCH_3_MM, **dict.fromkeys(TASKS, nets.PATCH_1_5_MM)}
"""Task to patch; every study begins with the first pass."""
PAIRS = 7
REPEATED = 5
"""A trunk of 60 slices this many times on top of itself: what is measured does not depend on what is in it."""


@dataclass
class Calls:
    """How often a study was loaded (checked), turned to canonical axes and interpolated."""

    loads: int = 0
    views: int = 0
    resamplings: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return self.loads + self.views + self.resamplings


@dataclass(frozen=True)
class Pair:
    """The same task by itself and as the second of a study, seconds outside the forward pass."""

    alone_s: float
    after_s: float

    @property
    def saved_s(self) -> float:
        """By the first task's having been there."""
        return self.alone_s - self.after_s


@contextmanager
def counted() -> Generator[Calls]:
    """Calls of the functions that do the work, whatever the engine says of them."""
    from heimdallr_ray.segmentation.totalseg import geometry, study

    calls = Calls()
    made: Any = study.Study.__init__
    canonical: Any = geometry.canonical
    linear: Any = geometry.resample_linear

    def one_more(name: str, function: Any) -> Any:  # noqa: ANN401 - whatever it takes and gives
        def called(*arguments: object, **options: object) -> object:
            setattr(calls, name, getattr(calls, name) + 1)
            return function(*arguments, **options)

        return called

    with (
        mock.patch.object(study.Study, "__init__", one_more("loads", made)),
        mock.patch.object(geometry, "canonical", one_more("views", canonical)),
        mock.patch.object(geometry, "resample_linear", one_more("resamplings", linear)),
    ):
        yield calls


def alone(engine: ResidentEngine, image: tuple[Any, Any]) -> Segmentation:
    """The second task by itself on a new study."""
    return engine.segment(fresh(image), TASKS[1])


def after(engine: ResidentEngine, image: tuple[Any, Any]) -> Segmentation:
    """The second task of a new study that both tasks are wanted of, as a replica runs it."""
    run = engine.run_plan(fresh(image), TASKS)
    if run.plan.run[-1] != TASKS[1]:
        raise ValueError(f"the planner's order is another one: {run.plan.run}")
    return run.segmentations[TASKS[1]]


def pair(engine: ResidentEngine, image: tuple[Any, Any], *, alone_first: bool) -> Pair:
    """Both, one after the other."""
    if alone_first:
        by_itself, second = alone(engine, image), after(engine, image)
    else:
        second, by_itself = after(engine, image), alone(engine, image)
    return Pair(by_itself.timings.outside_forward_s, second.timings.outside_forward_s)


def calls_of_second(engine: ResidentEngine, image: tuple[Any, Any]) -> tuple[Calls, Calls]:
    """Of the second task by itself; and of a study with both tasks beyond those of a study with the first one."""
    with counted() as by_itself:
        alone(engine, image)
    with counted() as first:
        engine.run_plan(fresh(image), TASKS[:1])
    with counted() as both:
        after(engine, image)
    return by_itself, Calls(both.loads - first.loads, both.views - first.views, both.resamplings - first.resamplings)


def figures(folder: Path) -> Iterator[dict[str, object]]:
    """Yield what is saved, and the calls; weights go to `folder`."""
    import numpy as np

    from bench.phantoms import chest_and_abdomen

    engine = warm_engine(nets.write_registry(folder, REGISTRY, nets.SMALL))
    hu, affine = chest_and_abdomen(60)
    image = np.asfortranarray(np.concatenate([hu] * REPEATED, axis=2)), affine
    by_itself, beyond = calls_of_second(engine, image)
    pairs = [pair(engine, image, alone_first=bool(number % 2)) for number in range(PAIRS)]
    saved = sorted(one.saved_s for one in pairs)
    whole_s = statistics.median(one.alone_s for one in pairs)
    yield {
        "figure": "segment.second_task_saved_s",
        "value": round(statistics.median(saved), 3),
        "unit": f"s of {whole_s:.3f} s outside the forward pass, 512 x 512 x 300, median of {PAIRS} pairs",
        "bar": ">0",
    }
    yield {
        "figure": "segment.second_task_saved_s least",
        "value": round(saved[0], 3),
        "unit": f"s, least of {PAIRS} pairs",
    }
    yield {
        "figure": "segment.second_task_calls",
        "value": beyond.total,
        "unit": "loads, canonical views and resamplings that a second task adds",
        "bar": "==0",
    }
    yield {
        "figure": "segment.second_task_calls by itself",
        "value": by_itself.total,
        "unit": "loads, canonical views and resamplings of the same task alone",
        "bar": "==3",
    }
