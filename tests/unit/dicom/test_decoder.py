"""The child's own functions, in this process: inflation that skips, results that are checked, requests that are cut."""

from __future__ import annotations

import zlib

import numpy as np
import pytest

from heimdallr_ray.dicom import decoder, limits
from heimdallr_ray.dicom.decoder import INFLATE, Job, StreamEnds
from heimdallr_ray.dicom.isolated import batches

MIB = 1 << 20
PLAIN = np.random.default_rng(1).integers(0, 256, 3 * MIB + 17, np.uint8).tobytes()


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def job(skip: int, wanted: int, size: int = 0) -> Job:
    return Job("", INFLATE, {"skip": skip}, size, "|u1", (wanted,))


@pytest.mark.parametrize(
    ("skip", "wanted"), [(0, 1), (0, 3 * MIB + 17), (5, 2 * MIB), (2 * MIB, MIB + 17), (2 * MIB + 3, 9), (MIB, MIB)]
)
def test_the_part_that_is_wanted(skip: int, wanted: int) -> None:
    found = decoder.checked(deflated(PLAIN), job(skip, wanted))
    assert found.tobytes() == PLAIN[skip : skip + wanted]


def test_a_stream_that_ends_too_soon_or_is_damaged() -> None:
    packed = deflated(PLAIN)
    with pytest.raises(StreamEnds):
        decoder.checked(packed, job(0, len(PLAIN) + 1))
    with pytest.raises(StreamEnds):
        decoder.checked(packed[: len(packed) // 2], job(0, len(PLAIN)))
    with pytest.raises(ValueError, match=r"^$"):
        decoder.checked(b"\xff" * 100, job(0, 10))


def test_what_a_codec_returns_must_be_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = Job("1.2", "codec", {}, 1, "<u2", (2, 3))
    for returned, good in (
        (np.ones((2, 3), "<u2"), True),
        (np.ones((3, 2), "<u2").T, True),
        (np.ones((3, 2), "<u2"), False),
        (np.ones((2, 3), "<i2"), False),
        (np.ones((2, 3), "<u4"), False),
    ):
        monkeypatch.setattr(decoder, "decoded", lambda *_, returned=returned: returned)
        if good:
            assert decoder.checked(b"x", asked).flags.c_contiguous
        else:
            with pytest.raises(ValueError, match=r"int|uint"):
                decoder.checked(b"x", asked)


def test_requests_are_bounded_in_frames_and_bytes() -> None:
    def of(sizes: list[int]) -> list[list[int]]:
        jobs = [Job("1.2", "codec", {}, 1, "|u1", (size,)) for size in sizes]
        return [sizes[part] for part in batches(jobs)]

    most, room = limits.DECODE_BATCH_FRAMES, limits.DECODE_BATCH_BYTES
    assert of([]) == []
    assert of([1]) == [[1]]
    assert of([1] * (most + 1)) == [[1] * most, [1]]
    assert of([2 * room, 1, room, room - 1, 1]) == [[2 * room], [1], [room], [room - 1, 1]]


def test_the_time_of_a_frame_grows_with_its_size() -> None:
    small = Job("1.2", "codec", {}, 1, "<u2", (512, 512))
    large = Job("1.2", "codec", {}, 1, "<u2", (8192, 8192))
    assert small.decoded_bytes == MIB // 2
    assert small.cpu_s(1.0) < large.cpu_s(1.0) == pytest.approx(1 + 128 * limits.DECODE_CPU_S_PER_MIB)
