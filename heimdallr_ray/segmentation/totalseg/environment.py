"""What TotalSegmentator and nnU-Net read from the environment, set before either is imported.

Both take folders from environment variables at import time, and TotalSegmentator keeps a config.json whose usage
statistics default to on. A process of ours gets a folder of its own with statistics off, so nothing is sent, and
replicas do not race for one file. Licence numbers are never written here: the engine does not pass upstream's gate.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import functools
import importlib.metadata
import io
import json
import os
import shutil
import socket
import sys
import tempfile
import warnings
from collections.abc import Generator
from pathlib import Path
from typing import Final

from heimdallr_ray.errors import Broken

_CONFIG = {
    "totalseg_id": "totalseg_heimdallr",
    "send_usage_stats": False,
    "prediction_counter": 0,
    "statistics_disclaimer_shown": True,
}


def process_home(root: Path) -> Path:
    """The folder of this process below `root`; those of processes of this host that have ended are gone.

    An actor of Ray does not end the way Python does, and leaves its folder to the next one.

    Raises:
        Broken: the folder cannot be made.
    """
    host = socket.gethostname()
    home = root / f"{host}-{os.getpid()}"
    try:
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for other in root.iterdir():
            name, _, pid = other.name.rpartition("-")
            if name == host and pid.isdecimal() and (other == home or not is_alive(int(pid))):
                shutil.rmtree(other, ignore_errors=True)
        home.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise Broken(f"no folder for TotalSegmentator's settings: {error.strerror}") from error
    return home


def is_alive(pid: int) -> bool:
    """True while a process of this number runs."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _temporary_home(pid: int) -> Path:
    home = Path(tempfile.mkdtemp(prefix="heimdallr-totalseg-"))
    atexit.register(_remove_own, home, pid)
    return home


def _remove_own(home: Path, pid: int) -> None:
    # A forked child runs its parent's exit functions and must leave the parent's folder alone.
    if os.getpid() == pid:
        shutil.rmtree(home, ignore_errors=True)


def prepare(weights_dir: Path, home_dir: Path | None = None) -> Path:
    """Upstream's variables point at `weights_dir` and at a home of this process; returns that home.

    Args:
        weights_dir: registry with one folder per data set.
        home_dir: folder for config.json; None: a temporary one of this process, which goes when the process ends.

    Raises:
        Broken: the folder or config.json cannot be written.
    """
    try:
        home = home_dir or _temporary_home(os.getpid())
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write_config(home)
    except OSError as error:
        raise Broken(f"no folder for TotalSegmentator's settings: {error.strerror}") from error
    os.environ["TOTALSEG_HOME_DIR"] = str(home)
    os.environ["TOTALSEG_WEIGHTS_PATH"] = str(weights_dir)
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(weights_dir)
    # torch.compile changes results; exactness is the promise
    os.environ.pop("nnUNet_compile", None)
    return home


def prepare_compiler(folder: Path) -> None:
    """What torch compiles in this process is kept in `folder` and read from nowhere else.

    torch's own choice is a folder of a known name in /tmp, where another user could have put code. Of its caches those
    that are pickles are off: machine code is found again by the digest of its source. One compiler runs at a time, in
    a child that ends with its work.

    Raises:
        Broken: the folder cannot be made, or somebody else may write to it.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise Broken(f"no folder for compiled models: {error.strerror}") from error
    if found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise Broken(f"{folder} holds compiled code and has to be ours alone: chmod 700, or remove it")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    os.environ["TRITON_CACHE_DIR"] = str(folder / "triton")
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    os.environ["TORCHINDUCTOR_FX_GRAPH_CACHE"] = "0"
    os.environ["TORCHINDUCTOR_AUTOGRAD_CACHE"] = "0"


def _write_config(home: Path) -> None:
    temporary = home / f".config.{os.getpid()}.tmp"
    temporary.write_text(json.dumps(_CONFIG), encoding="utf-8")
    temporary.replace(home / "config.json")


def child_environment(folder: Path, weights_dir: Path, threads: int) -> dict[str, str]:
    """The variables of a process that runs upstream with `folder` as its home; none of ours, no proxy, no secret.

    Raises:
        Broken: the folder cannot be written.
    """
    try:
        _write_config(folder)
    except OSError as error:
        raise Broken(f"no folder for TotalSegmentator's settings: {error.strerror}") from error
    passed = {name: value for name, value in os.environ.items() if name.startswith(_PASSED)}
    return passed | {
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in sys.path),  # noqa: PTH100 - as sys.path is read
        "LC_ALL": "C.UTF-8",
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "TOTALSEG_HOME_DIR": str(folder),
        "TOTALSEG_WEIGHTS_PATH": str(weights_dir),
        "OMP_NUM_THREADS": str(threads),
        # nnU-Net asks torch for so many threads, and starts so many processes to list its input
        "nnUNet_def_n_proc": str(threads),
    }


_PASSED: Final = ("CUDA_", "NVIDIA_", "LD_LIBRARY_PATH", "PATH", "NUMBA_CACHE_DIR")
"""What a child needs to find its interpreter, its libraries and the accelerator that this process was given."""

_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_MAX: Final = -4
_M_ARENA_MAX: Final = -8


def keep_freed_memory() -> bool:
    """From now on glibc keeps large freed blocks for the next allocation; False where the C library has no such knob.

    Otherwise each activation of each tile is fresh memory from the kernel, faulted in and zeroed page by page, and
    given back at once: half of the CPU time of a small network. A replica's footprint is then that of its largest
    study.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((_M_ARENA_MAX, 1), (_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, 2**31 - 1))
    return all(mallopt(ctypes.c_int(name), ctypes.c_int(value)) == 1 for name, value in settings)


@contextlib.contextmanager
def upstream_call(what: str) -> Generator[None]:
    """Upstream prints, warns, and leaves by SystemExit where it should raise; here it is silent and raises Broken.

    Raises:
        Broken: upstream called sys.exit.
    """
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except SystemExit as error:
        raise Broken(f"{what}: upstream ended the process ({error.code})") from error


def versions() -> dict[str, str]:
    """Versions of what decides the labels, for provenance."""
    return {name: importlib.metadata.version(name) for name in ("TotalSegmentator", "nnunetv2", "torch")}
