"""A folder of CT slices into a volume, and a volume into a compressed archive copy, against what others use for it."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from bench import convert_worker
from bench.phantoms import chest_and_abdomen

NAME = "convert"

REPEATS, REPEATS_FULL = 5, 9
LIMIT_S = 300.0
RIGHT_MM = 0.01
ORIGINAL = "dcm2niix -z y"
Turn = Callable[[bool], dict[str, float]]
"""One conversion, compared with the truth if it is told so."""
DCM2NIIX = {ORIGINAL: "y", "dcm2niix -z n": "n"}


def run(full: bool) -> Iterator[dict[str, object]]:
    """Yield CPU seconds beside every peer's; all take turns, medians are compared."""
    with tempfile.TemporaryDirectory(prefix="convert-") as name, ExitStack() as stack:
        root = Path(name)
        folder = root / "dicom"
        hu, affine = chest_and_abdomen()
        write_series(folder, hu, affine)
        np.savez(root / "truth.npz", array=np.ascontiguousarray(hu.transpose(2, 1, 0)), affine=affine)
        turns: dict[str, Turn] = {
            contender: stack.enter_context(Worker(contender, folder, root / "truth.npz")).turn
            for contender in convert_worker.CONTENDERS
        }
        for peer, flag in DCM2NIIX.items():
            turns[peer] = dcm2niix_turn(flag, folder, root / f"dcm2niix-{flag}", (hu, affine))
        found: dict[str, list[dict[str, float]]] = {contender: [turn(True)] for contender, turn in turns.items()}
        right = [who for who, first in found.items() if is_right(first[0])]
        if "heimdallr" not in right:
            raise ValueError(f"our own volume is wrong: {found['heimdallr']}")
        for _ in range(REPEATS_FULL if full else REPEATS):
            for contender, turn in turns.items():
                found[contender].append(turn(False))
    # The first turn of each is its warm-up, and the one that is held against the truth.
    cpu = {who: statistics.median(turn["cpu_s"] for turn in turns[1:]) for who, turns in found.items()}
    wall = {who: statistics.median(turn["wall_s"] for turn in turns[1:]) for who, turns in found.items()}
    ours = cpu["heimdallr"]
    fastest = min((who for who in right if who != "heimdallr"), key=lambda who: cpu[who])
    yield {
        "figure": "convert.cpu_vs_dcm2niix_gz",
        "value": round(cpu[ORIGINAL] / ours, 2),
        "unit": f"times less CPU than {ORIGINAL}",
        "bar": ">=8.0",
    }
    yield {
        "figure": "convert.cpu_vs_fastest_right_peer",
        "value": ours,
        "unit": "CPU s",
        "peer": fastest,
        "peer_value": cpu[fastest],
        "bar": "<=1.0",
    }
    for who in cpu:
        geometry = "geometry right" if who in right else "geometry WRONG"
        yield {"figure": f"convert.cpu_s {who}", "value": cpu[who], "unit": f"CPU s, {geometry}"}
        yield {"figure": f"convert.wall_s {who}", "value": wall[who], "unit": "s"}
    yield from archive(hu, affine, 3 if full else 1)


def archive(hu: NDArray[np.int16], affine: NDArray[np.float64], repeats: int) -> Iterator[dict[str, object]]:
    """The .nii.gz that the package writes, against zlib's usual level on the same uncompressed bytes."""
    from heimdallr_ray.render.nifti import volume_nifti
    from heimdallr_ray.volume import Volume, VolumeSource

    volume = Volume(hu, affine, VolumeSource("CT", synthetic=True))
    written = volume_nifti(volume)
    plain = zlib.decompress(written, wbits=31)
    ours, theirs, size = [], [], 0
    for _ in range(repeats):
        began = time.process_time()
        volume_nifti(volume)
        ours.append(time.process_time() - began)
        began = time.process_time()
        size = len(zlib.compress(plain, 6, wbits=31))
        theirs.append(time.process_time() - began)
    yield {
        "figure": "archive.cpu_vs_zlib6",
        "value": round(statistics.median(theirs) / statistics.median(ours), 2),
        "unit": "times less CPU than zlib 6",
        "bar": ">=10.0",
    }
    yield {
        "figure": "archive.bytes_vs_zlib6",
        "value": len(written),
        "unit": "bytes",
        "peer": "zlib 6",
        "peer_value": size,
        "bar": "<=1.10",
    }
    yield {"figure": "archive.cpu_s", "value": statistics.median(ours), "unit": "CPU s"}
    yield {"figure": "archive.cpu_s zlib 6", "value": statistics.median(theirs), "unit": "CPU s"}


def is_right(turn: dict[str, float]) -> bool:
    """True where no voxel differs and no corner lies elsewhere."""
    return turn["voxels_wrong"] == 0 and turn["corner_mm"] < RIGHT_MM


def write_series(folder: Path, hu: NDArray[np.int16], affine: NDArray[np.float64]) -> None:
    """One CT object per slice in `folder`."""
    from heimdallr_ray.dicom.synthetic import write_ct_series
    from heimdallr_ray.ids import Uid

    folder.mkdir()
    objects = write_ct_series(
        hu,
        affine,
        study_uid=Uid.derived("bench convert", "study"),
        series_uid=Uid.derived("bench convert", "series"),
        patient_id="BENCH",
        patient_name="SYNTHETIC^BENCH",
        study_datetime=datetime(2026, 1, 1, 12),
    )
    for name, content in objects:
        (folder / name).write_bytes(content)


class Worker:
    """A contender's warm process."""

    def __init__(self, contender: str, folder: Path, truth: Path) -> None:
        command = [sys.executable, str(Path(convert_worker.__file__)), contender, str(folder), str(truth)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
        self._contender = contender
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def turn(self, check: bool) -> dict[str, float]:
        """One conversion.

        Raises:
            ValueError: it did not answer in time, or ended.
        """
        pipe_in, pipe_out = self._process.stdin, self._process.stdout
        if pipe_in is None or pipe_out is None:
            raise ValueError("the worker has no pipes")
        pipe_in.write("check\n" if check else "go\n")
        pipe_in.flush()
        answered, _, _ = select.select([pipe_out], [], [], LIMIT_S)
        line = pipe_out.readline() if answered else ""
        if not line:
            raise ValueError(f"{self._contender} gave no volume within {LIMIT_S:.0f} s")
        return cast("dict[str, float]", json.loads(line))

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()


def dcm2niix_turn(flag: str, folder: Path, target: Path, truth: tuple[NDArray[Any], NDArray[np.float64]]) -> Turn:
    """One conversion by the program itself (not the wheel's Python entry point), read back outside the timed part."""
    import dcm2niix
    import nibabel as nib

    program = str(cast(Any, dcm2niix).bin)
    target.mkdir()

    def turn(check: bool) -> dict[str, float]:
        for old in target.iterdir():
            old.unlink()
        command = [program, "-z", flag, "-b", "n", "-f", "volume", "-o", str(target), str(folder)]
        began = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            killer = threading.Timer(LIMIT_S, process.kill)
            killer.start()
            # The usage of this child alone; the kernel tells it only to whoever waits for the child.
            _, status, usage = os.wait4(process.pid, 0)
            killer.cancel()
            process.returncode = os.waitstatus_to_exitcode(status)
        wall_s = time.perf_counter() - began
        if process.returncode:
            raise ValueError(f"dcm2niix ended with {process.returncode}")
        spent = {"cpu_s": usage.ru_utime + usage.ru_stime, "wall_s": wall_s}
        if not check:
            return spent
        (written,) = target.iterdir()
        image = cast(Any, nib).load(written)
        grid = np.asanyarray(image.dataobj), image.affine
        return {**spent, **convert_worker.compare(grid, truth)}

    return turn
