from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

import heimdallr_ray
from heimdallr_ray import logs
from heimdallr_ray.config import Settings, load
from heimdallr_ray.errors import NotReady
from heimdallr_ray.logs.setup import LogFileHandler

logger = logging.getLogger("heimdallr_ray.tests")


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logs.close()
    root, ours, ray = logging.getLogger(), logging.getLogger("heimdallr_ray"), logging.getLogger("ray")
    names = (root, ours, ray)
    before = [(list(one.handlers), one.level) for one in names], threading.excepthook, sys.excepthook
    yield
    logs.close()
    assert ([(list(one.handlers), one.level) for one in names], threading.excepthook, sys.excepthook) == before


def settings(folder: Path, **values: Any) -> Settings:
    return load({}, data_dir=folder, **values)


def lines(path: Path) -> list[dict[str, Any]]:
    """All but the first of each process."""
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    return [line for line in found if line["event"] != "process.started"]


def events(path: Path) -> list[str]:
    return [line["event"] for line in lines(path)]


@pytest.mark.parametrize(
    ("level", "found"),
    [
        ("DEBUG", ["d", "i", "w", "library.said", "e"]),
        ("INFO", ["i", "w", "library.said", "e"]),
        ("WARNING", ["w", "library.said", "e"]),
        ("ERROR", ["e"]),
    ],
)
def test_the_level_decides(tmp_path: Path, level: str, found: list[str]) -> None:
    logs.configure(settings(tmp_path, log_level=level), "consumer")
    logger.debug("d")
    logger.info("i")
    logger.warning("w")
    logging.getLogger("some.library").info("said")
    logging.getLogger("some.library").warning("said")
    logger.error("e")
    path = tmp_path / "logs" / "consumer.log"
    assert events(path) == found
    assert {(line["process"], line["pid"]) for line in lines(path)} == {("consumer", os.getpid())}


def test_a_process_says_that_it_has_started(tmp_path: Path) -> None:
    logs.configure(settings(tmp_path), "consumer")
    (line,) = (json.loads(line) for line in (tmp_path / "logs" / "consumer.log").read_bytes().splitlines())
    assert (line["event"], line["process"], line["pid"]) == ("process.started", "consumer", os.getpid())
    assert line["fields"] == {"version": heimdallr_ray.__version__}


def test_an_access_log_with_a_level_of_its_own_is_not_taken(tmp_path: Path) -> None:
    logs.configure(settings(tmp_path, log_level="DEBUG"), "ingress")
    access = logging.getLogger("uvicorn.access")
    before = access.level
    access.setLevel(logging.INFO)
    try:
        access.info('"GET /api/v1/events?token=%s" 200', "secret")
    finally:
        access.setLevel(before)
    assert events(tmp_path / "logs" / "ingress.log") == []


def test_rays_loggers_pass_nothing_on_and_are_heard_once(tmp_path: Path) -> None:
    logs.configure(settings(tmp_path), "supervisor")
    ray = logging.getLogger("ray")
    before = ray.propagate
    try:
        for passes_on in (True, False):
            ray.propagate = passes_on
            ray.warning("said")
    finally:
        ray.propagate = before
    assert events(tmp_path / "logs" / "supervisor.log") == ["library.said"] * 2


def test_a_second_call_leaves_the_first_place(tmp_path: Path) -> None:
    logs.configure(settings(tmp_path), "one")
    logs.configure(settings(tmp_path), "two")
    logger.warning("said")
    assert events(tmp_path / "logs" / "one.log") == []
    assert events(tmp_path / "logs" / "two.log") == ["said"]


def test_a_child_shares_the_file_in_a_role_of_its_own(tmp_path: Path) -> None:
    assert logs.place() is None
    logs.configure(settings(tmp_path, log_level="DEBUG", log_file_mib=3, log_files=2), "listener")
    where = logs.place()
    assert where is not None
    told = logs.LogPlace(**json.loads(json.dumps(asdict(where.of("receiver")))))
    assert (told.path, told.level, told.max_bytes, told.files) == (where.path, "DEBUG", 3 << 20, 2)
    logger.warning("ours")
    logs.configure_at(told)
    logger.warning("theirs")
    assert [line["process"] for line in lines(where.path)] == ["listener", "receiver"]


def test_the_console_hears_our_warnings_without_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    logs.configure(settings(tmp_path), "supervisor", console=True)
    logger.info("quiet")
    logging.getLogger("pydicom").warning("DOE^JANE")
    try:
        float("DOE^JANE")
    except ValueError:
        logger.exception("broke")
    said = capsys.readouterr().err
    assert said == "broke: ValueError\n"


def test_a_full_disk_stops_nobody_and_what_was_lost_is_counted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "logs" / "listener.log"
    path.parent.mkdir()
    path.mkdir()
    logs.configure(settings(tmp_path), "listener")
    for _ in range(4):
        logger.warning("lost")
    assert capfd.readouterr().err == f"the log {path} cannot be written: EISDIR\n"
    path.rmdir()
    logger.warning("kept")
    told, kept = lines(path)
    assert (told["event"], told["fields"]) == ("log.lines_lost", {"count": 5, "reason": "EISDIR"})
    assert kept["event"] == "kept"


def test_a_call_with_wrong_words_is_counted_too(tmp_path: Path) -> None:
    logs.configure(settings(tmp_path), "listener")
    # Past pytest's own handler, which raises.
    (ours,) = [one for one in logging.getLogger().handlers if isinstance(one, LogFileHandler)]
    ours.handle(logging.LogRecord("heimdallr_ray", logging.WARNING, "", 1, "%d %d", ("one",), None))
    logger.warning("kept")
    assert events(tmp_path / "logs" / "listener.log") == ["log.lines_lost", "kept"]


def test_a_folder_that_cannot_be_written_is_said_at_the_start(tmp_path: Path) -> None:
    logs.require_writable(settings(tmp_path))
    assert list((tmp_path / "logs").iterdir()) == []
    (tmp_path / "logs").rmdir()
    (tmp_path / "logs").write_bytes(b"")
    with pytest.raises(NotReady, match=r"the log cannot be written to .*logs: "):
        logs.require_writable(settings(tmp_path))
    logs.configure(settings(tmp_path), "listener")
    logger.warning("heard by nobody")


ENDING = """
import sys, threading
from pathlib import Path
from heimdallr_ray import logs
from heimdallr_ray.config import load
logs.configure(load({}, data_dir=Path(sys.argv[1])), "consumer")
def work():
    float("DOE^JANE")
def leave():
    sys.exit(1)
for job in (work, leave):
    thread = threading.Thread(target=job, name="worker-1")
    thread.start()
    thread.join()
{}["DOE^JANE"]
"""


def test_what_ends_a_thread_or_the_process_is_in_the_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ENDING, tmp_path], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "KeyError" in done.stderr, "Python's own words stay on stderr"
    path = tmp_path / "logs" / "consumer.log"
    assert b"DOE" not in path.read_bytes()
    thread, process = lines(path)
    assert (thread["event"], thread["level"], thread["fields"]) == (
        "thread.failed",
        "CRITICAL",
        {"thread_name": "worker-1"},
    )
    assert thread["error"]["type"] == "ValueError"
    assert thread["error"]["frames"][-1] == "<string>:8 work"
    assert (process["event"], process["error"]["type"]) == ("process.failed", "KeyError")
