"""Tasks outside the resident engine: TotalSegmentator's own entry point in a child process, on verified weights."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from heimdallr_ray.errors import Broken, OutOfMemory, OutOfTime, VertebraeJoined
from heimdallr_ray.segmentation.deadline import Deadline
from heimdallr_ray.segmentation.engine import Timings
from heimdallr_ray.segmentation.specs import TaskSpec
from heimdallr_ray.segmentation.tasks import models_of
from heimdallr_ray.segmentation.totalseg import environment, upstream_child
from heimdallr_ray.segmentation.totalseg.checkpoint import trusted_checkpoint
from heimdallr_ray.segmentation.weights import CHECKPOINT_SUFFIX, WeightsSet
from heimdallr_ray.volume import Volume

logger = logging.getLogger(__name__)

LIMIT_S: Final = 1500.0
"""Longest that one child may run; the deadline of its study may come before."""
_NAMES_VERTEBRAE: Final = "postprocess_vertebrae_pp"
"""Upstream's function that tells vertebrae apart where their labels touch; of a single lump it ends in IndexError."""
_END_S: Final = 10.0
_LOOK_S: Final = 0.25
"""How often work that gives way looks whether other work waits."""
_MAX_ANSWER_BYTES: Final = 64 * 1024


class UpstreamRunner:
    """Runs a task in a folder of its own, which is gone afterwards.

    The child gets a copy of the weights made from the bytes that were hashed, so that what upstream unpickles is what
    the manifest vouches for, whatever happens to the registry meanwhile.
    """

    def __init__(self, weights: WeightsSet, root: Path, device: str, threads: int) -> None:
        """Args: the registry, where folders are made, torch device, CPU threads."""
        self._weights, self._root, self._device, self._threads = weights, root, device, threads

    def run(
        self, volume: Volume, spec: TaskSpec, deadline: Deadline, *, on_host: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], Timings]:
        """The labels of one task on the grid of the volume, their affine, and what they cost.

        Args:
            volume: the image.
            spec: the task.
            deadline: of the study.
            on_host: its networks run on the CPU, whatever the runner's device.

        Raises:
            WeightsMissing, WeightsTampered: as `WeightsSet.read`.
            OutOfMemory: a model or the image did not fit.
            OutOfTime: upstream did not end within LIMIT_S or before the deadline, or there was no time to start it.
            VertebraeJoined: upstream could not tell the vertebrae apart.
            Broken: upstream failed.
        """
        began = time.perf_counter()
        with tempfile.TemporaryDirectory(prefix="upstream-", dir=self._root) as name:
            folder = Path(name)
            self._write(folder, volume, spec, "cpu" if on_host else self._device)
            ready = time.perf_counter()
            self._call(folder, spec, deadline)
            answer = _answer(folder)
            labels, affine = _labels(folder, volume)
        spent = Timings(load_s=ready - began, forward_s=float(answer["forward_s"]), total_s=time.perf_counter() - began)
        return labels, affine, spent

    def _write(self, folder: Path, volume: Volume, spec: TaskSpec, device: str) -> None:
        for model in models_of(spec.name):
            files = {one for one in self._weights.files if one.startswith(f"{model.folder}/")}
            for file in sorted(files.union(model.checkpoints(self._weights.files))):
                target = folder / upstream_child.WEIGHTS / file
                target.parent.mkdir(parents=True, exist_ok=True)
                content = self._weights.read(file)
                if file.endswith(CHECKPOINT_SUFFIX):
                    # Upstream unpickles without restraint; it only gets what the restrained unpickler has read.
                    trusted_checkpoint(content, file)
                target.write_bytes(content)
        request = {
            "task": spec.upstream_task,
            "fast": spec.fast,
            "fastest": spec.fastest,
            "parent": os.getpid(),
            # upstream's word for an accelerator
            "device": device.replace("cuda", "gpu"),
        }
        (folder / upstream_child.REQUEST).write_text(json.dumps(request), encoding="utf-8")
        np.save(folder / upstream_child.IMAGE, volume.array, allow_pickle=False)
        np.save(folder / upstream_child.AFFINE, volume.affine_ras, allow_pickle=False)

    def _call(self, folder: Path, spec: TaskSpec, deadline: Deadline) -> None:
        """The child has ended well.

        Raises:
            OutOfMemory, OutOfTime, VertebraeJoined, MadeWay, Broken: as `run`.
        """
        deadline.require(spec.name)
        limit_s = min(LIMIT_S, deadline.left_s)
        variables = environment.child_environment(folder, folder / upstream_child.WEIGHTS, self._threads)
        with _child(folder, variables) as process:
            try:
                code = _ended(process, limit_s, deadline, spec.name)
            except subprocess.TimeoutExpired as error:
                raise OutOfTime(f"{spec.name}: upstream did not end within {limit_s:.0f} s") from error
        if code == 0:
            return
        if code < 0:
            raise Broken(f"{spec.name}: upstream was ended by {signal.Signals(-code).name}")
        answer = _answer(folder)
        said = str(answer.get("error"))
        logger.error("upstream.failed", extra={"task": spec.name, "error": said, "exit_code": code})
        if answer.get("out_of_memory") is True:
            raise OutOfMemory(f"{spec.name} through upstream")
        if said.startswith(IndexError.__name__) and _NAMES_VERTEBRAE in answer.get("functions", ()):
            raise VertebraeJoined(f"{spec.name}: all vertebrae touch each other")
        raise Broken(f"{spec.name}: upstream failed with {said}")


def _ended(process: subprocess.Popen[bytes], limit_s: float, deadline: Deadline, what: str) -> int:
    """The child's exit code; where the work is optional, other work ends the wait.

    Raises:
        TimeoutExpired: it did not end within `limit_s`.
        MadeWay: other work came.
    """
    if not deadline.optional:
        return process.wait(limit_s)
    end = time.monotonic() + limit_s
    while True:
        left_s = max(0.0, end - time.monotonic())
        try:
            return process.wait(min(left_s, _LOOK_S))
        except subprocess.TimeoutExpired:
            if not left_s:
                raise
        deadline.require(what)


@contextlib.contextmanager
def _child(folder: Path, variables: Mapping[str, str]) -> Generator[subprocess.Popen[bytes]]:
    """The process, and whatever it starts, is gone afterwards."""
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and module, no outside text
        [sys.executable, "-P", "-m", upstream_child.MODULE, str(folder)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=dict(variables),
        cwd=folder,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        # unreaped, its number is still its own
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(_END_S)


def _answer(folder: Path) -> dict[str, Any]:
    file = folder / upstream_child.ANSWER
    try:
        with file.open("rb") as stream:
            parsed: object = json.loads(stream.read(_MAX_ANSWER_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise Broken("upstream ended without an answer") from error
    if not isinstance(parsed, dict):
        raise Broken("upstream gave an answer of another form")
    return cast("dict[str, Any]", parsed)


def _labels(folder: Path, volume: Volume) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    try:
        labels = cast("NDArray[Any]", np.load(folder / upstream_child.LABELS, allow_pickle=False))
        affine = cast("NDArray[Any]", np.load(folder / upstream_child.LABELS_AFFINE, allow_pickle=False))
    except (OSError, ValueError) as error:
        raise Broken("upstream left no labels") from error
    if labels.dtype != np.uint8 or labels.shape != volume.shape or affine.shape != (4, 4):
        raise Broken("upstream left labels on another grid")
    return labels, affine.astype(np.float64)
