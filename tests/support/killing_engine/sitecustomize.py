"""Read by every Python that has this folder on PYTHONPATH: studies that a test marks kill the engine's process.

The folder TEST_MARKED_STUDIES holds one file per marked study, named by its UID. Its content is empty, or the UID of
another study that must be inside the engine before the first kill, or `hold`: the study then stands still in the engine
as long as the file is there, and kills nobody. Every study that the engine begins with leaves its UID and the process
id as a line in `began`.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ENGINE = "heimdallr_ray.segmentation.totalseg.engine"
MARKED = "TEST_MARKED_STUDIES"
HOLD = "hold"
WAIT_S = 60.0
_began_lock = threading.Lock()


def _began(folder: Path, study_uid: str) -> None:
    with _began_lock, (folder / "began").open("a", encoding="utf-8") as file:
        file.write(f"{study_uid} {os.getpid()}\n")


def _pids_of(folder: Path, study_uid: str) -> list[str]:
    lines = (folder / "began").read_text(encoding="utf-8").splitlines()
    return [pid for uid, _, pid in (line.partition(" ") for line in lines) if uid == study_uid]


def _die_or_stand(folder: Path, study_uid: str) -> None:
    beside = (folder / study_uid).read_text(encoding="utf-8").strip()
    deadline = time.monotonic() + WAIT_S
    if beside == HOLD:
        while (folder / study_uid).exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        return
    first = len(set(_pids_of(folder, study_uid))) == 1
    while first and beside and str(os.getpid()) not in _pids_of(folder, beside) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGKILL)


def _patch(module: ModuleType) -> None:
    engine: Any = module.ResidentEngine  # type: ignore[attr-defined]
    run_plan, predict = engine.run_plan, engine._predict
    here = threading.local()
    folder = Path(os.environ[MARKED])

    def marked_run_plan(self: Any, volume: Any, *given: Any, **named: Any) -> Any:
        here.study_uid = volume.source.study_uid
        _began(folder, here.study_uid)
        return run_plan(self, volume, *given, **named)

    def marked_predict(self: Any, *given: Any, **named: Any) -> Any:
        # On the device, as far as the engine can tell.
        if (folder / here.study_uid).exists():
            _die_or_stand(folder, here.study_uid)
        return predict(self, *given, **named)

    engine.run_plan, engine._predict = marked_run_plan, marked_predict


class _Finder(importlib.abc.MetaPathFinder):
    """Finds the engine's module where everybody finds it, and changes it once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != ENGINE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec is not None and spec.loader is not None
        execute = spec.loader.exec_module

        def executed(module: ModuleType) -> None:
            execute(module)
            _patch(module)

        spec.loader.exec_module = executed  # type: ignore[method-assign]
        return spec


if os.environ.get(MARKED):
    sys.meta_path.insert(0, _Finder())
