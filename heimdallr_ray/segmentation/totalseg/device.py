"""Which torch device a replica uses, and whether it still answers."""

from __future__ import annotations

import torch

from heimdallr_ray.errors import Broken


def pick_device(wanted: str) -> str:
    """`cuda` or `cpu`: what was asked for; `auto` takes the accelerator that this process was given, else the CPU."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"


def require_device(device: str) -> None:
    """The device answers; asked without waiting for what runs on it.

    An accelerator that met a fault inside a kernel refuses everything that its process asks from then on.

    Raises:
        Broken: it answers with an error; only another process can use it.
    """
    if not device.startswith("cuda"):
        return
    try:
        torch.cuda.mem_get_info(device)
    except RuntimeError as error:
        raise Broken(f"{device} does not answer: {str(error).splitlines()[0]}") from error
