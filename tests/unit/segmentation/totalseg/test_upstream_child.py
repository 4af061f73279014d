"""What leaves the child that runs upstream: labels that keep their numbers, errors by all their names."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from heimdallr_ray.errors import Broken, OutOfMemory, VertebraeJoined
from heimdallr_ray.segmentation.deadline import Deadline
from heimdallr_ray.segmentation.tasks import task_spec
from heimdallr_ray.segmentation.totalseg import upstream, upstream_child
from heimdallr_ray.segmentation.totalseg.upstream import UpstreamRunner
from heimdallr_ray.segmentation.totalseg.upstream_child import NotLabels, chain, functions, narrowed, out_of_memory
from heimdallr_ray.segmentation.weights import WeightsSet


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32, np.float64])
def test_whole_numbers_of_a_byte_stay_what_they_are(dtype: type) -> None:
    given = np.array([[0, 1], [117, 255]], dtype).T
    made = narrowed(given)
    assert made.dtype == np.uint8
    assert made.flags.c_contiguous
    np.testing.assert_array_equal(made, given)


@pytest.mark.parametrize("value", [256, 257, -1, 65537, 1.5, 254.9999, np.nan, np.inf])
def test_a_number_that_a_byte_does_not_hold_is_no_label(value: float) -> None:
    given = np.zeros((3, 3, 3))
    given[1, 1, 1] = value
    with pytest.raises(NotLabels):
        narrowed(given)


def wrapped(*errors: Exception) -> Exception:
    """The first error, raised while the second was handled, and so on."""
    for outer, inner in pairwise(errors):
        outer.__context__ = inner
    return errors[0]


FULL = torch.OutOfMemoryError("CUDA out of memory")


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (FULL, True),
        (MemoryError(), True),
        (wrapped(RuntimeError("a worker is gone"), FULL), True),
        (wrapped(ValueError("no file"), RuntimeError("a worker is gone"), FULL), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True),
        (wrapped(RuntimeError("a worker is gone"), ValueError("no file")), False),
        (SystemExit(1), False),
    ],
)
def test_want_of_memory_is_seen_wherever_it_stands_in_the_chain(error: BaseException, *, full: bool) -> None:
    assert out_of_memory(error) is full


def test_a_chain_ends() -> None:
    first, second = ValueError("a"), KeyError("b")
    first.__cause__, second.__cause__ = second, first
    assert chain(first) == [first, second]
    deep = wrapped(*(ValueError(str(n)) for n in range(40)))
    assert len(chain(deep)) == 8


class Ended:
    """A child that has left its answer."""

    def __init__(self, folder: Path, answer: dict[str, object]) -> None:
        (folder / upstream_child.ANSWER).write_text(json.dumps(answer), encoding="utf-8")

    def wait(self, _limit_s: float) -> int:
        return 1


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ({"error": "RuntimeError, from OutOfMemoryError", "out_of_memory": True}, OutOfMemory),
        ({"error": "MemoryErrorOfSomebodyElse", "out_of_memory": False}, Broken),
        ({"error": "ValueError"}, Broken),
        ({"error": "IndexError", "functions": ["nnUNet_predict_image", "postprocess_vertebrae_pp"]}, VertebraeJoined),
        ({"error": "IndexError", "functions": ["elsewhere"]}, Broken),
        ({"error": "IndexError"}, Broken),
        ({"error": "KeyError", "functions": ["postprocess_vertebrae_pp"]}, Broken),
    ],
)
def test_the_answer_says_what_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: dict[str, object], error: type[Exception]
) -> None:
    @contextlib.contextmanager
    def child(folder: Path, _variables: object) -> Generator[Ended]:
        yield Ended(folder, answer)

    monkeypatch.setattr(upstream, "_child", child)
    runner = UpstreamRunner(WeightsSet(tmp_path, synthetic=True, files={}), tmp_path, "cpu", 1)
    with pytest.raises(error) as raised:
        runner._call(tmp_path, task_spec("breasts"), Deadline())
    assert type(raised.value) is error


def test_one_lump_of_vertebrae_ends_where_the_refusal_looks_for_it() -> None:
    """Upstream's own function on two touching labels in one component; a later version that can do it ends this."""
    from totalsegmentator.map_to_binary import class_map
    from totalsegmentator.postprocessing import postprocess_vertebrae_pp

    labels = np.zeros((12, 12, 12), np.uint8)
    labels[4:8, 4:8, 2:6], labels[4:8, 4:8, 6:10] = 1, 2
    with pytest.raises(IndexError) as raised:
        postprocess_vertebrae_pp(labels, class_map["vertebrae_pp"], min_size_mm3=1)
    assert "postprocess_vertebrae_pp" in functions(raised.value)
