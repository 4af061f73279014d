"""Which torch device a replica uses, and whether it still answers."""

from __future__ import annotations

import torch

from heimdallr_ray.errors import DeviceLost
from heimdallr_ray.segmentation.totalseg.memory import is_out_of_memory


def pick_device(wanted: str) -> str:
    """`cuda` or `cpu`: what was asked for; `auto` takes the accelerator that this process was given, else the CPU."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str) -> None:
    """The device answers; asked without waiting for what runs on it.

    An accelerator that met a fault inside a kernel refuses everything that its process asks from then on.

    Raises:
        DeviceLost: it answers with an error.
    """
    if not device.startswith("cuda"):
        return
    try:
        torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        raise DeviceLost(f"{device} does not answer: {str(error).splitlines()[0]}") from error


def require_computing(device: torch.device) -> None:
    """The device still adds up a few numbers; asked after an error of which it is not known what it left behind.

    Raises:
        DeviceLost: it answers with an error, other than that it is full.
    """
    if device.type == "cpu":
        return
    try:
        torch.ones(8, device=device).sum().item()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise DeviceLost(f"{device} does not compute: {str(error).splitlines()[0]}") from error
