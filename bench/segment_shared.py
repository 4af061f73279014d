"""What the second task of a study does not do again: seconds, and calls that are counted from outside the engine."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from bench import nets
from bench.forward import outside_cpu_s
from bench.segment_peers import Image, fresh, warm_engine

if TYPE_CHECKING:
    from heimdallr_ray.segmentation.totalseg.engine import ResidentEngine

TASKS: tuple[str, str] = ("trunk_cavities", "vertebrae_body")
"""Two uncropped tasks at one spacing."""
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
    """The same task by itself and as the second of a study, CPU seconds outside the forward pass."""

    alone_s: float
    after_s: float


def saved_s(pairs: Sequence[Pair]) -> float:
    """By what the first task has done, without what other programs of the machine added: the least of each counts."""
    return min(one.alone_s for one in pairs) - min(one.after_s for one in pairs)


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


def alone(engine: ResidentEngine, image: Image) -> Callable[[], object]:
    """The second task on a new study."""
    return partial(engine.segment, fresh(image), TASKS[1])


def after(engine: ResidentEngine, image: Image) -> Callable[[], object]:
    """The second task on a study that the first has been done on."""
    study = fresh(image)
    engine.segment(study, TASKS[0])
    return partial(engine.segment, study, TASKS[1])


def pair(engine: ResidentEngine, image: Image, *, alone_first: bool) -> Pair:
    """Both, one after the other."""
    if alone_first:
        by_itself = outside_cpu_s(alone(engine, image))
        return Pair(by_itself, outside_cpu_s(after(engine, image)))
    second = outside_cpu_s(after(engine, image))
    return Pair(outside_cpu_s(alone(engine, image)), second)


def calls_of(work: Callable[[], object]) -> Calls:
    """What `work` calls."""
    with counted() as calls:
        work()
    return calls


def figures(folder: Path) -> Iterator[dict[str, object]]:
    """Yield what is saved, and the calls; weights go to `folder`."""
    import numpy as np

    from bench.phantoms import chest_and_abdomen

    engine = warm_engine(nets.write_registry(folder, dict.fromkeys(TASKS, nets.PATCH_1_5_MM), nets.SMALL))
    hu, affine = chest_and_abdomen(60)
    image = np.asfortranarray(np.concatenate([hu] * REPEATED, axis=2)), affine
    by_itself, second = calls_of(alone(engine, image)), calls_of(after(engine, image))
    pairs = [pair(engine, image, alone_first=bool(number % 2)) for number in range(PAIRS)]
    whole_s = min(one.alone_s for one in pairs)
    yield {
        "figure": "segment.second_task_saved_s",
        "value": round(saved_s(pairs), 3),
        "unit": f"CPU s of {whole_s:.3f} outside the forward pass, 512 x 512 x 300, least of {PAIRS} turns each",
        "bar": ">0",
    }
    yield {
        "figure": "segment.second_task_pairs_saved",
        "value": sum(one.alone_s > one.after_s for one in pairs),
        "unit": f"pairs, of {PAIRS}, in which the second task alone took more",
    }
    yield {
        "figure": "segment.second_task_calls",
        "value": second.total,
        "unit": "loads, canonical views and resamplings of a task that is the second of its study",
        "bar": "==0",
    }
    yield {
        "figure": "segment.second_task_calls by itself",
        "value": by_itself.total,
        "unit": "loads, canonical views and resamplings of the same task alone",
        "bar": "==3",
    }
