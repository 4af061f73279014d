"""What is made of an installation's folder is for its user alone, whoever makes it first."""

from __future__ import annotations

import os
import shutil
import stat
import sys
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from heimdallr_ray import logs
from heimdallr_ray.config import Settings, load
from heimdallr_ray.folders import make_private, open_private
from heimdallr_ray.listener.draining import DrainMark
from heimdallr_ray.listener.snapshots import LISTENER, Place
from heimdallr_ray.listener.spool import Spool
from heimdallr_ray.operations import rayhead
from heimdallr_ray.operations.lock import DataFolderLock
from heimdallr_ray.security.audit_key import ensure_key
from heimdallr_ray.storage.blobs import LocalBlobStore


@pytest.fixture(autouse=True)
def usual_umask() -> Generator[None]:
    """As most systems have it: what is made without a mode is readable by everybody."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def open_to_others(root: Path) -> list[Path]:
    return [path for path in (root, *root.rglob("*")) if mode(path) & 0o077]


def test_every_folder_that_was_missing_is_for_its_user_alone(tmp_path: Path) -> None:
    make_private(tmp_path / "site" / "data" / "run")
    assert open_to_others(tmp_path / "site") == []
    make_private(tmp_path / "site" / "data" / "run")


def test_a_folder_of_the_site_keeps_its_rights(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    site.chmod(0o2750)
    make_private(site)
    make_private(site / "data")
    # A folder of a group hands it, and the bit that says so, on to those below.
    assert (mode(site), mode(site / "data") & 0o777) == (0o2750, 0o700)


def test_a_file_in_its_place_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("no folder")
    for folder in (tmp_path / "data", tmp_path / "data" / "run"):
        with pytest.raises(OSError, match="data"):
            make_private(folder)


def test_a_file_is_opened_for_its_user_alone_and_a_known_one_keeps_its_rights(tmp_path: Path) -> None:
    for _ in range(2):
        with open(tmp_path / "new.log", "ab", opener=open_private) as stream:
            stream.write(b"x")
    assert (mode(tmp_path / "new.log"), (tmp_path / "new.log").read_bytes()) == (0o600, b"xx")
    (tmp_path / "new.log").chmod(0o640)
    with open(tmp_path / "new.log", "ab", opener=open_private):
        assert mode(tmp_path / "new.log") == 0o640


def _spool(settings: Settings) -> None:
    Spool(settings.spool_dir).close()


def _place(settings: Settings) -> None:
    Place.take(settings.run_dir / "figures", LISTENER).leave()


def _lock(settings: Settings) -> None:
    DataFolderLock(settings.run_dir).release()


def _log(settings: Settings) -> None:
    logs.configure(settings, "listener")
    logs.close()


@pytest.mark.parametrize(
    "first",
    [
        lambda settings: LocalBlobStore(settings.blob_dir),
        lambda settings: DrainMark(settings.run_dir).quiet(),
        lambda settings: ensure_key(settings.resolved_audit_key_file),
        lambda settings: logs.require_writable(settings),
        _spool,
        _place,
        _lock,
        _log,
    ],
)
def test_whoever_makes_the_data_folder_makes_it_for_its_user_alone(
    tmp_path: Path, first: Callable[[Settings], object]
) -> None:
    settings = load({}, None, data_dir=tmp_path / "site" / "data", profile="demo")
    first(settings)
    assert settings.data_dir.is_dir()
    assert open_to_others(tmp_path / "site") == []


def test_what_ray_says_of_itself_is_for_its_user_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = load({}, None, data_dir=tmp_path / "site" / "data", profile="demo")
    program = tmp_path / "says_something"
    program.write_text("#!/bin/sh\necho started\n")
    program.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(program))
    head = rayhead.RayHead(settings, gpus=0)
    try:
        assert head.process.wait(30) == 0
        assert head.where.log_file.read_text() == "started\n"
        assert open_to_others(tmp_path / "site") == []
    finally:
        shutil.rmtree(head.where.temp_dir, ignore_errors=True)
