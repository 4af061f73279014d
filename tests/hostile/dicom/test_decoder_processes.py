"""Codecs that crash, hang, eat memory or are killed: this process goes on, and the next frame is decoded."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from heimdallr_ray.dicom import child, isolated, limits
from heimdallr_ray.dicom.decoder import Job
from heimdallr_ray.dicom.isolated import DecoderPool
from heimdallr_ray.errors import DecoderUnavailable, NotAVolume
from tests.support.bounds import within

CPU_S = 0.4


@pytest.fixture
def pool() -> Iterator[DecoderPool]:
    made = DecoderPool(2, module="tests.support.bad_decoder", cpu_s=CPU_S)
    made.decode([frame("warm")])
    yield made
    made.stop()


def frame(words: str, shape: tuple[int, ...] = (4, 3), dtype: str = "<u2") -> isolated.Frame:
    content = words.encode()
    return content, Job("1.2.3", "codec", {}, len(content), dtype, shape)


def refusal(pool: DecoderPool, words: str) -> str:
    with pytest.raises(NotAVolume) as caught:
        pool.decode([frame("good"), frame(words), frame("good")])
    assert caught.value.reason == "undecodable_pixels"
    return caught.value.detail


def children() -> list[tuple[int, str]]:
    """Process id and state of every child of this process that decodes."""
    found: list[tuple[int, str]] = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if int(fields[1]) == os.getpid() and (b"bad_decoder" in command or fields[0] == "Z"):
            found.append((int(stat.parent.name), fields[0]))
    return found


def works(pool: DecoderPool) -> None:
    (first, second) = pool.decode([frame("one"), frame("three", (2,), "|u1")])
    assert first.tolist() == [[3] * 3] * 4
    assert (second.tolist(), second.dtype) == ([5, 5], np.uint8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("crash", "the decoder's process ended"),
        ("leave", "the decoder's process ended"),
        ("spin", "the decoder took too long"),
        ("sleep", "the decoder took too long"),
        ("eat", "MemoryError from the decoder"),
        ("shape", "ValueError from the decoder"),
        ("dtype", "ValueError from the decoder"),
    ],
)
def test_a_codec_that_misbehaves_costs_its_frame_only(pool: DecoderPool, words: str, said: str) -> None:
    # A crash is told at once; what hangs is told after the time that a frame has.
    with within(waiting_s=1.0 if words in ("crash", "leave") else 30.0):
        assert refusal(pool, words) == said
    works(pool)
    states = children()
    assert len(states) == 1, "one child, and no zombie of another"
    assert states[0][1] != "Z"


def test_children_that_were_started_ahead_are_the_ones_that_decode(pool: DecoderPool) -> None:
    assert pool.warm_up() == pool.processes == 2
    ahead = sorted(pool.pids)
    assert pool.warm_up() == 2
    for pid in ahead:
        assert Path(f"/proc/{pid}").is_dir()
    works(pool)
    assert sorted(pool.pids) == ahead
    os.kill(ahead[0], signal.SIGKILL)
    deadline = time.monotonic() + 10
    while (ahead[0], "Z") not in children() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert pool.warm_up() == 2
    assert len(set(pool.pids) & set(ahead)) == 1
    works(pool)


def test_a_pool_whose_children_do_not_start_is_empty_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    broken = DecoderPool(2, module="tests.support.there_is_no_such_module")
    assert broken.warm_up() == 0
    assert [record.message for record in caplog.records] == ["decoder.not_started"] * 2


def test_a_child_that_stands_still_is_killed_by_its_parent(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "END_S", 0.5)
    assert refusal(pool, "stop") == "the decoder took too long"
    works(pool)


def test_a_child_that_somebody_else_killed_is_replaced_unnoticed(pool: DecoderPool, tmp_path: Path) -> None:
    (pixels,) = pool.decode([frame(f"kill-once {tmp_path / 'marker'}")])
    assert pixels.shape == (4, 3)
    (idle,) = pool.pids
    os.kill(idle, signal.SIGKILL)
    works(pool)
    assert [state for _, state in children()] != ["Z"]


def test_a_child_that_is_killed_again_and_again_is_not_the_senders_fault(pool: DecoderPool) -> None:
    with pytest.raises(DecoderUnavailable):
        pool.decode([frame("kill")])
    works(pool)


def test_children_that_do_not_start_are_tried_a_bounded_number_of_times() -> None:
    broken = DecoderPool(1, module="tests.support.there_is_no_such_module")
    with pytest.raises(DecoderUnavailable):
        broken.decode([frame("good")])
    assert broken.pids == []


def test_children_have_limits_and_see_no_setting(pool: DecoderPool, monkeypatch: pytest.MonkeyPatch) -> None:
    (bounds,) = pool.decode([frame("limits", (3,), "<i8")])
    assert 0 < bounds[0] < limits.DECODER_MEMORY_BYTES + (4 << 30)
    assert bounds[1:].tolist() == [0, 0]
    monkeypatch.setenv("HEIMDALLR_SECRET", "x")
    pool.stop()
    (seen,) = pool.decode([frame("environment", (2,), "<i8")])
    assert seen[0] == 0
    # A stopped pool keeps no child.
    assert children() == []


def test_frames_are_decoded_side_by_side_and_children_are_bounded(pool: DecoderPool) -> None:
    futures = [pool.submit([frame("environment", (2,), "<i8")]) for _ in range(40)]
    seen = {int(future.result()[0][1]) for future in futures}
    assert len(seen) <= 2
    assert set(pool.pids) >= seen
    assert len(children()) <= 2


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


ORPHAN = """
import os, sys, time
from heimdallr_ray.dicom.decoder import Job
from heimdallr_ray.dicom.isolated import DecoderPool
pool = DecoderPool(1, module="tests.support.bad_decoder")
pool.decode([(b"x", Job("1.2.3", "codec", {}, 1, "<u2", (1,)))])
if os.fork() == 0:
    time.sleep(60)
print(pool.pids[0], flush=True)
time.sleep(60)
"""


def test_children_end_with_their_parent_even_if_another_process_holds_their_pipe() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", ORPHAN], stdout=subprocess.PIPE, text=True, process_group=0, cwd=Path.cwd()
    )
    assert parent.stdout is not None
    with parent:
        child = int(parent.stdout.readline())
        try:
            parent.kill()
            parent.wait(timeout=10)
            deadline = time.monotonic() + 20
            while runs(child) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert not runs(child)
        finally:
            os.killpg(parent.pid, signal.SIGKILL)


FORK = """
import os
from heimdallr_ray.dicom import isolated
from heimdallr_ray.dicom.decoder import INFLATE, Job
import zlib
packer = zlib.compressobj(9, zlib.DEFLATED, -15)
packed = packer.compress(b"abcdef") + packer.flush()
frame = packed, Job("", INFLATE, {"skip": 2}, len(packed), "|u1", (4,))
def good():
    (found,) = isolated.pool().decode([frame])
    return found.tobytes() == b"cdef"
assert good()
child = os.fork()
if child == 0:
    os._exit(0 if good() else 1)
assert os.waitpid(child, 0)[1] == 0
assert good()
"""


def test_a_forked_process_starts_children_of_its_own() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=60)
