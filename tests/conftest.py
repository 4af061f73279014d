"""What all tests share: the folder of real images, and skips that are loud, or failures where CI asks for it.

And a process whose logging each of them leaves as it was. Where several processes run tests (`-n 2`), those of a file
share one, those marked `alone` run while no other test does.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import pytest
from _pytest.config import create_terminal_writer

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.scheduler import LoadScopeScheduling

# Before any test imports Ray: no usage statistics leave the machine.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# Migrated, empty databases of both dialects, for whichever test asks for one.
pytest_plugins = ("tests.support.databases",)

PEER_PACKAGES = (Path(__file__).parent / "peers.txt").read_text(encoding="utf-8").split()
# One program of each package; what a test needs of them it names: @pytest.mark.peers("storescu").
PEER_PROGRAMS = ("dcmsend", "storescp", "Orthanc", "chromium", "chromedriver")
DATA_VARIABLE = "HEIMDALLR_TEST_DATA"
DOOR, ROOM = Path(__file__).with_name("peers.txt"), Path(__file__)
# More than the longest test may take.
LOCKED_S = 3600.0
# Folders whose tests start the whole product: one after the other, and before all else.
STACKS = ("tests/integration/stack/", "tests/crash/running_stack/")


def peers_required() -> bool:
    """True where a test may not be skipped for want of a program."""
    return os.environ.get("REQUIRE_PEERS", "") == "1"


def find_program(name: str) -> str | None:
    """Full path of a peer's program; Debian keeps Orthanc's in /usr/sbin, which is not on everybody's PATH."""
    return shutil.which(name, path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/bin", "/usr/sbin"]))


def missing_programs(item: pytest.Item) -> list[str]:
    """Programs that the test's `peers` markers name (or any of them, where a marker names none) and that are absent."""
    wanted = [name for marker in item.iter_markers("peers") for name in (marker.args or PEER_PROGRAMS)]
    return sorted({name for name in wanted if find_program(name) is None})


def pytest_configure(config: pytest.Config) -> None:
    """The marker that this file itself gives its meaning."""
    config.addinivalue_line("markers", "python(version): says something of this version of Python alone, as of '3.11'")
    if one_of_several(config):
        # What pytest-timeout says of a test that hangs; a worker's stdout is nowhere. Not captured yet.
        writer = create_terminal_writer(config, os.fdopen(os.dup(2), "w"))
        config.get_terminal_writer = lambda: writer


def of_another_python(item: pytest.Item) -> str:
    """The version that the test's `python` marker names, where it is not the one that runs; else empty."""
    marker = item.get_closest_marker("python")
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    return str(marker.args[0]) if marker is not None and marker.args[0] != running else ""


def group_of(nodeid: str) -> str:
    """Tests of one group run in one process, in their order: those of a file, or those of all STACKS."""
    file = nodeid.partition("::")[0]
    return "stacks" if file.startswith(STACKS) else file


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Where several processes run tests, the longest group comes first, that no process ends long after the others."""
    if one_of_several(config):
        items.sort(key=lambda item: group_of(item.nodeid) != "stacks")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Where several processes run tests: who runs which."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    return ByGroup(config, log)


def one_of_several(config: pytest.Config) -> bool:
    """True in a process that runs some of the tests, where others run the rest."""
    return hasattr(config, "workerinput")


def taken(file: BinaryIO, how: int) -> bool:
    """True where the lock was free."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, how: int) -> Generator[None]:
    """A lock between processes; one that dies gives it back."""
    deadline = time.monotonic() + LOCKED_S
    with path.open("rb") as file:
        while not taken(file, how):
            if time.monotonic() > deadline:
                pytest.exit(f"another process of tests has held {path.name} for {LOCKED_S:.0f} s", 1)
            time.sleep(0.02)
        try:
            yield
        finally:
            # Said, because a process that was forked meanwhile would go on holding it.
            fcntl.flock(file, fcntl.LOCK_UN)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test marked `alone` waits for those that run in other processes, and they wait for it."""
    if not one_of_several(item.config):
        return (yield)
    alone = item.get_closest_marker("alone") is not None
    with ExitStack() as inside:
        # Who waits in the door lets nobody in before; the files only serve as what is locked.
        with locked(DOOR, fcntl.LOCK_EX):
            inside.enter_context(locked(ROOM, fcntl.LOCK_EX if alone else fcntl.LOCK_SH))
        return (yield)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if absent := missing_programs(item):
        pytest.skip(f"not installed: {', '.join(absent)}")
    if item.get_closest_marker("data") and not os.environ.get(DATA_VARIABLE):
        pytest.skip(f"{DATA_VARIABLE} is not set")
    if version := of_another_python(item):
        pytest.skip(f"says something of Python {version} alone")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """A test that leaves this process logging into a file fails, and not a later one that finds handlers and hooks."""
    yield
    logs = sys.modules.get("heimdallr_ray.logs")
    if logs is not None and (left := logs.place()) is not None:
        logs.close()
        pytest.fail(f"{item.nodeid}: leaves this process logging into {left.path}: logs.close()", pytrace=False)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With REQUIRE_PEERS=1 a skip is a failure, but for images or a GPU that are not there, or another Python."""
    report = yield
    if not (report.skipped and peers_required()) or hasattr(report, "wasxfail"):
        return report
    without_images = item.get_closest_marker("data") and not os.environ.get(DATA_VARIABLE)
    if without_images or item.get_closest_marker("gpu") or of_another_python(item):
        return report
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"{item.nodeid}: {reason}; REQUIRE_PEERS=1 makes a skip a failure"
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what was left out, and what would bring it back."""
    reasons: dict[str, int] = {}
    for report in terminalreporter.stats.get("skipped", []):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        reasons[reason.removeprefix("Skipped: ")] = reasons.get(reason.removeprefix("Skipped: "), 0) + 1
    if not reasons:
        return
    terminalreporter.section("TESTS LEFT OUT", sep="!", red=True, bold=True)
    for reason, count in sorted(reasons.items()):
        terminalreporter.write_line(f"{count:4d}  {reason}")
    if any(reason.startswith("not installed") for reason in reasons):
        terminalreporter.write_line(f"To run them: apt-get install --no-install-recommends {' '.join(PEER_PACKAGES)}")
    if any(reason.startswith(DATA_VARIABLE) for reason in reasons):
        terminalreporter.write_line(f"To run them: {DATA_VARIABLE}=FOLDER, the folder of real public images")


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real images. A test that uses it carries the marker `data`; a file missing there is a failure."""
    text = os.environ.get(DATA_VARIABLE)
    if not text:
        pytest.skip(f"{DATA_VARIABLE} is not set")
    folder = Path(text)
    assert folder.is_dir(), f"{DATA_VARIABLE} names no folder"
    return folder
