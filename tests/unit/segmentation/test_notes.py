from __future__ import annotations

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from heimdallr_ray.config import Settings, load
from heimdallr_ray.operations import doctor, status
from heimdallr_ray.segmentation.engine import EngineInfo
from heimdallr_ray.segmentation.notes import NAME, read_notes, write_notes
from heimdallr_ray.segmentation.totalseg.environment import process_home

REFUSED = "totalsegmentator/291 needs 900 MiB, the budget is 800 MiB"
INFO = EngineInfo(
    backend="resident",
    device="cpu",
    threads=2,
    models=(),
    available_tasks=(),
    licensed_tasks=(),
    synthetic=True,
    load_s={},
    versions={},
    mode="turbo",
    turbo={"totalsegmentator/297": ("channels_last_3d", "compile")},
    notes=(REFUSED,),
)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load({}, data_dir=tmp_path)


@pytest.fixture
def root(settings: Settings) -> Path:
    return settings.run_dir / "totalsegmentator"


def test_what_a_replica_wrote_is_read_while_it_lives(root: Path) -> None:
    write_notes(process_home(root), INFO)
    (found,) = read_notes(root)
    assert (found.device, found.mode, found.notes) == ("cpu", "turbo", (REFUSED,))
    assert found.turbo == ("totalsegmentator/297: channels_last_3d, compile",)


def test_a_replica_that_has_ended_or_lives_elsewhere_says_nothing(root: Path) -> None:
    home = process_home(root)
    write_notes(home, INFO)
    gone = 2**22 + 1
    home.rename(root / f"{socket.gethostname()}-{gone}")
    assert read_notes(root) == ()
    (root / f"{socket.gethostname()}-{gone}").rename(root / f"elsewhere-{os.getpid()}")
    assert read_notes(root) == ()


@pytest.mark.parametrize("content", ["", "{", "[]", "[" * 5000, json.dumps({"notes": ["x" * (1 << 17)]})])
def test_a_damaged_note_is_none(root: Path, content: str) -> None:
    (process_home(root) / NAME).write_text(content)
    assert read_notes(root) == ()


def test_no_folder_is_no_note_and_a_replica_goes_on_without_one(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_notes(root) == ()
    write_notes(root / "nowhere", INFO)
    assert "segmenter.note_not_kept" in caplog.messages


def test_status_and_doctor_say_it(settings: Settings, root: Path) -> None:
    write_notes(process_home(root), INFO)
    told = status.segmenter_notes(settings)["segmenter"]
    assert told == {"mode": "turbo", "turbo": "totalsegmentator/297: channels_last_3d, compile", "notes": REFUSED}
    (found,) = doctor.check_segmenter(settings)
    assert (found.level, found.detail) == ("note", REFUSED)


def test_status_says_that_turbo_found_no_faster_way(settings: Settings, root: Path) -> None:
    write_notes(process_home(root), replace(INFO, turbo={}))
    assert status.segmenter_notes(settings)["segmenter"]["turbo"] == "no model: all run in exact mode"


def test_in_exact_mode_without_notes_there_is_nothing_to_say(settings: Settings, root: Path) -> None:
    write_notes(process_home(root), replace(INFO, mode="exact", turbo={}, notes=()))
    assert status.segmenter_notes(settings) == {}
    assert list(doctor.check_segmenter(settings)) == []
