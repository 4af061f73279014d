from __future__ import annotations

import fcntl
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from heimdallr_ray.logs.file import WAIT_S, SharedFile

WRITER = """
import json, sys
from pathlib import Path
from heimdallr_ray.logs.file import SharedFile
path, name, count, max_bytes, files = sys.argv[1:]
file = SharedFile(Path(path), max_bytes=int(max_bytes), files=int(files))
number = 0
while number < int(count) or int(count) == 0:
    file.append((json.dumps({"name": name, "number": number, "fill": "x" * (number * 37 % 300)}) + "\\n").encode())
    number += 1
    if number == 100:
        print("going", flush=True)
"""


def writer(path: Path, name: str, count: int, max_bytes: int, files: int) -> subprocess.Popen[bytes]:
    words = [str(path), name, str(count), str(max_bytes), str(files)]
    return subprocess.Popen([sys.executable, "-c", WRITER, *words], stdout=subprocess.PIPE)


def all_lines(path: Path) -> list[bytes]:
    """Of all files, the oldest first."""
    files = sorted(path.parent.glob(f"{path.name}.*"), key=lambda one: -int(one.suffix[1:]))
    return [line for file in (*files, path) for line in file.read_bytes().splitlines(keepends=True)]


def test_several_processes_lose_and_tear_no_line_while_the_file_is_turned(tmp_path: Path) -> None:
    path, count = tmp_path / "listener.log", 400
    writers = [writer(path, str(name), count, 20_000, 100) for name in range(4)]
    for one in writers:
        one.communicate(timeout=60)
        assert one.returncode == 0
    numbers: dict[str, list[int]] = {}
    for line in all_lines(path):
        values = json.loads(line)
        numbers.setdefault(values["name"], []).append(values["number"])
    assert numbers == {str(name): list(range(count)) for name in range(4)}
    sizes = [file.stat().st_size for file in tmp_path.iterdir()]
    assert len(sizes) > 5
    assert max(sizes) <= 20_000


def test_no_more_files_than_asked_for_and_the_youngest_lines_stay(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    file = SharedFile(path, max_bytes=100, files=3)
    for number in range(50):
        file.append(b"%03d %s\n" % (number, b"x" * 25))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["x.log", "x.log.1", "x.log.2"]
    assert [int(line[:3]) for line in all_lines(path)] == list(range(50))[-len(all_lines(path)) :]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_one_file_is_kept_where_one_is_asked_for(tmp_path: Path) -> None:
    file = SharedFile(tmp_path / "x.log", max_bytes=20, files=1)
    for number in range(9):
        file.append(b"line %d ......\n" % number)
    assert (tmp_path / "x.log").read_bytes() == b"line 8 ......\n"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_line_larger_than_the_file_may_be_is_written_all_the_same(tmp_path: Path) -> None:
    file = SharedFile(tmp_path / "x.log", max_bytes=5, files=2)
    file.append(b"0123456789\n")
    file.append(b"abcdefghij\n")
    assert b"".join(all_lines(tmp_path / "x.log")) == b"0123456789\nabcdefghij\n"


def test_a_killed_process_tears_no_line_of_another(tmp_path: Path) -> None:
    path = tmp_path / "listener.log"
    killed = writer(path, "killed", 0, 1 << 30, 2)
    assert killed.stdout is not None
    assert killed.stdout.readline() == b"going\n"
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate(timeout=10)
    # What a kill between two pages of a write leaves.
    with path.open("ab") as torn:
        torn.write(b'{"name": "killed", "num')
    SharedFile(path, max_bytes=1 << 30, files=2).append(b'{"name": "other"}\n')
    *_, piece, line = path.read_bytes().splitlines()
    assert piece == b'{"name": "killed", "num'
    assert json.loads(line) == {"name": "other"}


def test_a_process_that_keeps_the_lock_holds_nobody_up_for_long(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.touch()
    with path.open("rb") as keeper:
        fcntl.flock(keeper, fcntl.LOCK_EX)
        file = SharedFile(path, max_bytes=10, files=2)
        began = time.monotonic()
        for _ in range(100):
            file.append(b"0123456789\n")
        assert time.monotonic() - began < 10 * WAIT_S
    assert path.read_bytes() == b"0123456789\n" * 100
    file.append(b"turned\n")
    assert b"".join(all_lines(path)) == b"0123456789\n" * 100 + b"turned\n"


@pytest.mark.parametrize("take", [Path.unlink, lambda path: path.rename(path.with_suffix(".old"))])
def test_a_file_that_was_taken_away_is_made_anew(tmp_path: Path, take: Callable[[Path], object]) -> None:
    path = tmp_path / "x.log"
    file = SharedFile(path, max_bytes=1000, files=2)
    file.append(b"one\n")
    take(path)
    file.append(b"two\n")
    assert path.read_bytes() == b"two\n"


def test_what_does_not_fit_on_the_disk_leaves_no_piece(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    script = """
import resource, sys
from pathlib import Path
from heimdallr_ray.logs.file import SharedFile
file = SharedFile(Path(sys.argv[1]), max_bytes=1 << 20, files=2)
file.append(b"first\\n")
soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (50, hard))
for _ in range(2):
    try:
        file.append(b"x" * 100 + b"\\n")
    except OSError as error:
        print(error.errno)
resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
file.append(b"second\\n")
"""
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["28", "28"]
    assert path.read_bytes() == b"first\nsecond\n"


@pytest.mark.parametrize("make", [lambda path: path.symlink_to("/dev/null"), os.mkfifo, Path.mkdir])
def test_only_a_regular_file_is_written(tmp_path: Path, make: Callable[[Path], object]) -> None:
    path = tmp_path / "x.log"
    make(path)
    with pytest.raises(OSError, match=r"."):
        SharedFile(path, max_bytes=10, files=2).append(b"x\n")
