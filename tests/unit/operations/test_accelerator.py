"""A driver that is there is no proof: torch is asked where there is one, and nowhere else."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from heimdallr_ray.errors import NotReady
from heimdallr_ray.operations import accelerator
from heimdallr_ray.operations.accelerator import Accelerators


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host without a driver, in a folder."""
    for name in ("gpus", "dev"):
        (tmp_path / name).mkdir()
    for name in ("null", "nvidiactl", "nvidia-uvm"):
        (tmp_path / "dev" / name).touch()
    monkeypatch.setattr(accelerator, "DRIVER_DIR", tmp_path / "gpus")
    monkeypatch.setattr(accelerator, "DEVICE_DIR", tmp_path / "dev")
    return tmp_path


def python(folder: Path, monkeypatch: pytest.MonkeyPatch, body: str) -> None:
    """A program in the place of the Python that asks torch."""
    program = folder / "python"
    program.write_text(f"#!/bin/sh\n{body}\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))


def test_without_a_driver_nobody_is_asked(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("a process was started"))
    assert accelerator.look() == Accelerators(0, 0)
    (host / "gpus").rmdir()
    assert accelerator.look() == Accelerators(0, 0)


def test_devices_are_counted_by_the_driver_or_by_their_files(host: Path) -> None:
    (host / "dev" / "nvidia0").touch()
    assert accelerator.present() == 1
    for name in ("0000:01:00.0", "0000:02:00.0"):
        (host / "gpus" / name).mkdir()
    assert accelerator.present() == 2


@pytest.mark.slow
def test_the_torch_of_this_installation_is_asked(host: Path) -> None:
    import torch

    (host / "dev" / "nvidia0").touch()
    found = accelerator.look()
    assert found.present == 1
    assert found.usable == torch.cuda.device_count()
    assert bool(found.reason) == (found.usable == 0)
    assert "Traceback" not in found.reason


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("""echo '{"devices": 2, "reason": ""}'""", Accelerators(1, 2)),
        (
            """echo '{"devices": 0, "reason": "The NVIDIA driver is too old.\\\\nUpdate it."}'""",
            Accelerators(1, 0, "The NVIDIA driver is too old."),
        ),
        ("exit 139", Accelerators(1, 0, "torch could not be asked: JSONDecodeError")),
        ("echo nonsense", Accelerators(1, 0, "torch could not be asked: JSONDecodeError")),
        ("echo '[]'", Accelerators(1, 0, "torch could not be asked: TypeError")),
    ],
)
def test_what_torch_says_counts(host: Path, monkeypatch: pytest.MonkeyPatch, body: str, expected: Accelerators) -> None:
    (host / "dev" / "nvidia0").touch()
    python(host, monkeypatch, body)
    assert accelerator.look() == expected


def test_a_torch_that_does_not_answer_is_not_waited_for(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (host / "dev" / "nvidia0").touch()
    python(host, monkeypatch, "exec sleep 60")
    began = time.monotonic()
    assert accelerator.look(0.5) == Accelerators(1, 0, "torch did not answer within 0 s")
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(
    ("wanted", "found", "device"),
    [
        ("auto", Accelerators(0, 0), "cpu"),
        ("auto", Accelerators(1, 0, "too old"), "cpu"),
        ("auto", Accelerators(1, 1), "cuda"),
        ("cpu", Accelerators(1, 1), "cpu"),
        ("cuda", Accelerators(1, 1), "cuda"),
    ],
)
def test_the_device_is_what_can_be_used(wanted: str, found: Accelerators, device: str) -> None:
    assert accelerator.resolve(wanted, found) == device  # pyright: ignore[reportArgumentType]


def test_cuda_that_cannot_be_had_is_refused_with_the_reason() -> None:
    with pytest.raises(NotReady, match="no NVIDIA device"):
        accelerator.resolve("cuda", Accelerators(0, 0))
    with pytest.raises(NotReady, match=r"torch cannot use the 1 NVIDIA.*too old"):
        accelerator.resolve("cuda", Accelerators(1, 0, "too old"))
