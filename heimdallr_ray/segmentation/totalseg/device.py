"""Which torch device a replica uses."""

from __future__ import annotations

import torch


def pick_device(wanted: str) -> str:
    """`cuda` or `cpu`: what was asked for; `auto` takes the accelerator that this process was given, else the CPU."""
    if wanted != "auto":
        return wanted
    return "cuda" if torch.cuda.is_available() else "cpu"
