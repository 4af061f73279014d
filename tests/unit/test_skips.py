"""tests/conftest.py: a skip is loud, and a failure where CI asks for it; nobody leaves a log to the tests after it.

And who is to run alone does, also where several processes run tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
SUITE = """
import pytest
from pathlib import Path

@pytest.mark.peers("no-such-program")
def test_peer(): pass

@pytest.mark.peers("sh")
def test_peer_that_is_there(): pass

@pytest.mark.data
def test_data(data_folder): assert (data_folder / "there.dcm").is_file()

@pytest.mark.gpu
def test_gpu(): pytest.skip("no CUDA device")

@pytest.mark.python("2.7")
def test_other_python(): assert False

@pytest.mark.python("{running}")
def test_this_python(): pass

@pytest.mark.python("{running}")
def test_this_python_by_hand(): pytest.skip("felt like it")

def test_by_hand(): pytest.skip("felt like it")

@pytest.mark.xfail(reason="known", strict=True)
def test_known(): assert False
"""
SETTINGS = """
[pytest]
addopts = --strict-markers
markers =
    peers
    data
    gpu
    alone
"""


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    for name in ("conftest.py", "peers.txt"):
        shutil.copy(TESTS / name, tmp_path / name)
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    (tmp_path / "test_suite.py").write_text(SUITE.replace("{running}", running), encoding="utf-8")
    (tmp_path / "pytest.ini").write_text(SETTINGS, encoding="utf-8")
    return tmp_path


def run(folder: Path, *words: str, plugin: str = "no:cacheprovider", **variables: str) -> str:
    """What pytest prints about the small suite with these words, this plugin and these variables."""
    kept = {name: value for name, value in os.environ.items() if name not in ("REQUIRE_PEERS", "HEIMDALLR_TEST_DATA")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", plugin, *words, "-rA", str(folder)],
        cwd=folder,
        env={**kept, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **variables},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    return done.stdout


def test_without_peers_and_images_tests_are_left_out_loudly(suite: Path) -> None:
    printed = run(suite)
    assert "2 passed, 6 skipped, 1 xfailed" in printed
    assert "says something of Python 2.7 alone" in printed
    assert "TESTS LEFT OUT" in printed
    assert "not installed: no-such-program" in printed
    assert "apt-get install --no-install-recommends chromium" in printed
    assert "HEIMDALLR_TEST_DATA=FOLDER" in printed


def test_where_peers_are_required_a_skip_fails_but_for_images_gpu_and_another_python(suite: Path) -> None:
    printed = run(suite, REQUIRE_PEERS="1")
    assert "2 failed, 2 passed, 3 skipped, 1 xfailed, 1 error" in printed
    assert "ERROR test_suite.py::test_peer - " in printed
    assert "FAILED test_suite.py::test_by_hand - " in printed
    assert "FAILED test_suite.py::test_this_python_by_hand - " in printed


def test_where_the_images_are_named_a_missing_file_fails(suite: Path) -> None:
    images = suite / "images"
    images.mkdir()
    assert "FAILED test_suite.py::test_data" in run(suite, HEIMDALLR_TEST_DATA=str(images))
    (images / "there.dcm").touch()
    assert "PASSED test_suite.py::test_data" in run(suite, HEIMDALLR_TEST_DATA=str(images))


def test_a_folder_of_images_that_is_not_there_fails(suite: Path) -> None:
    printed = run(suite, HEIMDALLR_TEST_DATA=str(suite / "nowhere"))
    assert "ERROR test_suite.py::test_data" in printed


LEAVING = """
from heimdallr_ray import logs
from heimdallr_ray.config import load

def test_leaves_it(tmp_path): logs.configure(load({}, data_dir=tmp_path), "consumer")

def test_after(): assert logs.place() is None
"""


def test_who_leaves_the_process_logging_into_a_file_is_named(suite: Path) -> None:
    (suite / "test_suite.py").write_text(LEAVING, encoding="utf-8")
    printed = run(suite)
    assert "2 passed, 1 error" in printed
    assert "ERROR test_suite.py::test_leaves_it - " in printed
    assert "consumer.log: logs.close()" in printed


IN_TWO = ("-n", "2", "--dist", "loadfile", "--no-loadscope-reorder", "--max-worker-restart=0")

TOUCHING = """
import time
from pathlib import Path
import pytest

HERE = Path(__file__).parent

@pytest.fixture(autouse=True)
def seen(request):
    mine = HERE / f"{request.node.name}.runs"
    mine.touch()
    yield
    mine.unlink()
"""
BESIDE = (
    TOUCHING
    + """
@pytest.mark.parametrize("number", range(20))
def test_beside(number): time.sleep(0.05)
"""
)
ALONE = (
    TOUCHING
    + """
@pytest.mark.alone
@pytest.mark.parametrize("number", range(5))
def test_alone(number):
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        assert len(list(HERE.glob("*.runs"))) == 1
"""
)


def test_a_test_marked_alone_runs_while_no_other_process_runs_one(suite: Path) -> None:
    (suite / "test_suite.py").write_text(BESIDE, encoding="utf-8")
    (suite / "test_alone.py").write_text(ALONE, encoding="utf-8")
    assert "25 passed" in run(suite, *IN_TWO, plugin="xdist.plugin")
    unmarked = ALONE.replace("@pytest.mark.alone", "")
    (suite / "test_alone.py").write_text(unmarked, encoding="utf-8")
    assert "25 passed" not in run(suite, *IN_TWO, plugin="xdist.plugin")


HANGING = """
import time
from pathlib import Path

def test_hangs():
    with Path(__file__).with_name("runs").open("a") as runs:
        runs.write("once ")
    time.sleep(60)
"""


def test_a_test_that_hangs_in_one_of_several_processes_is_named_with_its_stack_and_not_run_again(suite: Path) -> None:
    (suite / "test_suite.py").write_text(HANGING, encoding="utf-8")
    words = (*IN_TWO, "-p", "pytest_timeout", "-o", "timeout=2", "-o", "timeout_method=thread")
    printed = run(suite, *words, plugin="xdist.plugin")
    assert "Timeout" in printed
    assert "time.sleep(60)" in printed
    assert "test_suite.py::test_hangs" in printed
    assert (suite / "runs").read_text() == "once "
