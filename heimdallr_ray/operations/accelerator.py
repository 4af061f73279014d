"""Which accelerator the models of this host can use, found without importing torch here.

A driver that is there is no proof that torch can use it, so where there is one, torch itself is asked, in a child
process that also computes something. Where there is none this costs a look into two folders.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from heimdallr_ray.errors import NotReady

DRIVER_DIR = Path("/proc/driver/nvidia/gpus")
DEVICE_DIR = Path("/dev")
_DEVICE_FILE = re.compile(r"nvidia\d+|dxg")
"""In a container the driver's folder may be hidden while its devices are there; dxg is that of WSL."""
ASK_S = 45.0
"""Importing torch takes 3 s, and ten times that where no cache holds it yet."""
_QUESTION = """
import json, torch
found, reason = 0, ""
try:
    torch.zeros(8, device="cuda").sum().item()
    found = torch.cuda.device_count()
except Exception as error:
    reason = str(error) or type(error).__name__
print(json.dumps({"devices": found, "reason": reason}))
"""


@dataclass(frozen=True)
class Accelerators:
    """What was found on this host."""

    present: int
    """Devices that the driver shows."""
    usable: int
    """Devices that torch can compute on."""
    reason: str = ""
    """Why torch can use none of those that are present."""


def present() -> int:
    """How many NVIDIA devices the driver shows."""
    if DRIVER_DIR.is_dir() and (cards := sum(1 for _ in DRIVER_DIR.iterdir())):
        return cards
    return sum(1 for path in DEVICE_DIR.iterdir() if _DEVICE_FILE.fullmatch(path.name))


def look(timeout_s: float = ASK_S) -> Accelerators:
    """What this host has, by its driver and by torch; waits `timeout_s` at most, and not at all without a driver."""
    shown = present()
    if not shown:
        return Accelerators(0, 0)
    try:
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", _QUESTION],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        answer = json.loads(done.stdout)
        return Accelerators(shown, int(answer["devices"]), _first_line(str(answer["reason"])))
    except subprocess.TimeoutExpired:
        return Accelerators(shown, 0, f"torch did not answer within {timeout_s:.0f} s")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Accelerators(shown, 0, f"torch could not be asked: {type(error).__name__}")


def resolve(wanted: Literal["auto", "cpu", "cuda"], found: Accelerators) -> Literal["cpu", "cuda"]:
    """The device that `wanted` means on this host.

    Raises:
        NotReady: `cuda` is wanted and cannot be had; says why.
    """
    if wanted == "cuda" and not found.usable:
        raise NotReady(f"HEIMDALLR_DEVICE is cuda, but {unusable(found)}")
    return "cuda" if wanted != "cpu" and found.usable else "cpu"


def unusable(found: Accelerators) -> str:
    """Why no device can be used, in words."""
    if not found.present:
        return "there is no NVIDIA device on this host"
    return f"torch cannot use the {found.present} NVIDIA device(s) of this host: {found.reason or 'no reason given'}"


def _first_line(text: str) -> str:
    return next((line.strip()[:300] for line in text.splitlines() if line.strip()), "")
