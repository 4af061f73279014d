"""TotalSegmentator's own entry point in a process of its own: one task on one image, no network, nothing left behind.

Run as `python -m heimdallr_ray.segmentation.totalseg.upstream_child FOLDER`, where FOLDER holds `request.json`,
`image.npy`, `affine.npy` and the weights; it leaves `labels.npy`, `labels_affine.npy` and `answer.json` there. Upstream
prints, ends processes, reads settings from HOME and looks for weights on the net, so all of that is this process's.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Final, cast

import numpy as np

MODULE: Final = "heimdallr_ray.segmentation.totalseg.upstream_child"
REQUEST: Final = "request.json"
IMAGE: Final = "image.npy"
AFFINE: Final = "affine.npy"
LABELS: Final = "labels.npy"
LABELS_AFFINE: Final = "labels_affine.npy"
ANSWER: Final = "answer.json"
WEIGHTS: Final = "weights"
_MAX_CHAIN: Final = 8
"""Errors of which the answer tells the names."""

_NETWORK_EVENTS: Final = frozenset({"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto"})


def refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: sockets of the machine's own (unix domain) are free, all others are refused.

    Raises:
        RuntimeError: a connection, or a look-up of a name.
    """
    if event not in _NETWORK_EVENTS:
        return
    if event == "socket.connect" and isinstance(arguments[1], str | bytes):
        return
    raise RuntimeError(f"{event}: no network here")


_PR_SET_PDEATHSIG: Final = 1


def end_with(parent: int) -> None:
    """The kernel ends this process when `parent` does (prctl(2)); one that is gone already ends it now."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit("the process that asked is gone")


class _Clock:
    """Seconds inside the bare network."""

    def __init__(self) -> None:
        self.spent_s = 0.0

    def around(self, bare: Any) -> Any:  # noqa: ANN401
        import torch

        def timed(predictor: Any, tile: Any) -> Any:  # noqa: ANN401
            began = time.perf_counter()
            prediction = bare(predictor, tile)
            if tile.is_cuda:
                torch.cuda.synchronize()
            self.spent_s += time.perf_counter() - began
            return prediction

        return timed


def _in_one_process(predictor: Any) -> Any:  # noqa: ANN401
    """nnU-Net's sequential prediction under the signature of the one that starts processes: the same functions."""

    def predict_from_files(
        self: Any,  # noqa: ANN401
        source: str,
        target: str,
        *,
        save_probabilities: bool = False,
        overwrite: bool = True,
        num_processes_preprocessing: int = 1,
        num_processes_segmentation_export: int = 1,
        folder_with_segs_from_prev_stage: str | None = None,
        num_parts: int = 1,
        part_id: int = 0,
    ) -> Any:  # noqa: ANN401
        del num_processes_preprocessing, num_processes_segmentation_export, num_parts, part_id
        return predictor.predict_from_files_sequential(
            self, source, target, save_probabilities, overwrite, folder_with_segs_from_prev_stage
        )

    return predict_from_files


def _zeros_for_an_empty_crop(predict_image: Any) -> Any:  # noqa: ANN401
    """Where nothing was found to crop to, nothing is predicted; upstream would go on with the whole image."""

    def nnunet_predict_image(image: Any, *arguments: Any, **options: Any) -> Any:  # noqa: ANN401
        import nibabel as nib

        crop = options.get("crop")
        if crop is None or np.asanyarray(crop.dataobj).any():
            return predict_image(image, *arguments, **options)
        empty = cast(Any, nib).Nifti1Image(np.zeros(image.shape, np.uint8), image.affine)
        return empty, image, None

    return nnunet_predict_image


def _nothing_sent(*_: object) -> None:
    """In the place of upstream's usage statistics."""


def _installed_only(weights: Path, configurations: Any) -> Any:  # noqa: ANN401
    def download_pretrained_weights(task_id: Any) -> None:  # noqa: ANN401
        folder = str(configurations[task_id]["foldername"])
        if not (weights / folder).is_dir():
            raise FileNotFoundError(folder)

    return download_pretrained_weights


def device_word(device: Any) -> str:  # noqa: ANN401 - a torch.device or a string
    """The API's word for a device, which it is told again where it calls itself for a rough segmentation.

    Its own function answers None for "cpu", and the first accelerator for every one.
    """
    if isinstance(device, str):
        return device
    if device.type != "cuda":
        return str(device.type)
    return "gpu" if device.index is None else f"gpu:{device.index}"


def _prepared(folder: Path, clock: _Clock) -> Any:  # noqa: ANN401
    """Upstream's entry point, changed where it would leave this process, this folder or the machine."""
    from totalsegmentator.config import (
        setup_nnunet,
    )

    cast(Any, setup_nnunet)()
    from nnunetv2.inference.predict_from_raw_data import (
        nnUNetPredictor,
    )
    from totalsegmentator import map_tasks_config, nnunet, python_api

    api, network, predictor = cast(Any, python_api), cast(Any, nnunet), cast(Any, nnUNetPredictor)
    configurations = cast(Any, map_tasks_config).TASK_ID_WEIGHTS_CONFIGS
    api.download_pretrained_weights = _installed_only(folder / WEIGHTS, configurations)
    # who asks has checked the site's licence; upstream would ask for a number in a file
    api.show_license_info = lambda: None
    api.convert_device_to_string = device_word
    api.increase_prediction_counter = dict
    api.send_usage_stats = _nothing_sent
    network.nnUNet_predict_image = _zeros_for_an_empty_crop(network.nnUNet_predict_image)
    predictor.predict_from_files = _in_one_process(predictor)
    predictor._internal_maybe_mirror_and_predict = clock.around(predictor._internal_maybe_mirror_and_predict)
    return api.totalsegmentator


class NotLabels(Exception):
    """What upstream returned holds something else than whole numbers from 0 to 255."""


def narrowed(labels: Any) -> Any:  # noqa: ANN401
    """The same numbers as contiguous uint8.

    Raises:
        NotLabels: uint8 would change one of them, and so give a voxel another name.
    """
    with np.errstate(invalid="ignore"):
        narrow = np.ascontiguousarray(labels, np.uint8)
    if not np.array_equal(narrow, labels):
        raise NotLabels
    return narrow


def chain(error: BaseException) -> list[BaseException]:
    """The error and what led to it, the last one first."""
    found: list[BaseException] = []
    one: BaseException | None = error
    while one is not None and one not in found and len(found) < _MAX_CHAIN:
        found.append(one)
        one = one.__cause__ or one.__context__
    return found


def functions(error: BaseException) -> list[str]:
    """Names of upstream's functions through which the error and what led to it came; never a message or a value."""
    return [frame.name for one in chain(error) for frame in traceback.extract_tb(one.__traceback__)[-_MAX_CHAIN:]]


def out_of_memory(error: BaseException) -> bool:
    """Any error of the chain says that an allocation failed."""
    from heimdallr_ray.segmentation.totalseg.memory import is_out_of_memory

    return any(map(is_out_of_memory, chain(error)))


def main(name: str) -> None:
    """The task of `request.json` has run."""
    sys.addaudithook(refuse_network)
    folder = Path(name)
    request: dict[str, Any] = json.loads((folder / REQUEST).read_text(encoding="utf-8"))
    end_with(request["parent"])
    array: Any = np.load(folder / IMAGE, allow_pickle=False)
    affine: Any = np.load(folder / AFFINE, allow_pickle=False)
    clock = _Clock()
    answer: dict[str, Any] = {"error": None}
    try:
        import nibabel as nib

        totalsegmentator = _prepared(folder, clock)
        began = time.perf_counter()
        image = totalsegmentator(
            cast(Any, nib).Nifti1Image(array, affine),
            None,
            ml=True,
            quiet=True,
            nr_thr_saving=1,
            device=request["device"],
            task=request["task"],
            fast=request["fast"],
            fastest=request["fastest"],
        )
        answer |= {"wall_s": time.perf_counter() - began, "forward_s": clock.spent_s}
        labels = np.asanyarray(image.dataobj)
        np.save(folder / LABELS, narrowed(labels), allow_pickle=False)
        np.save(folder / LABELS_AFFINE, np.asarray(image.affine, np.float64), allow_pickle=False)
    except (Exception, SystemExit) as error:
        # the names of the errors only: a message may hold anything
        answer = {
            "error": ", from ".join(type(one).__name__ for one in chain(error)),
            "out_of_memory": out_of_memory(error),
            "functions": functions(error),
        }
        (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")
        raise
    (folder / ANSWER).write_text(json.dumps(answer), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
