"""What was found in one header holds for the next one of its layout, and for no other."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

from heimdallr_ray.dicom import identity
from heimdallr_ray.dicom.alike import LAYOUTS_OF_A_PLACE, MAX_BYTES, MAX_PLACES, Layouts
from heimdallr_ray.dicom.identity import read_quickly
from tests.unit.dicom.test_identity import Answer, elements, file_start, header_answer, said_by

PLAIN = [ExplicitVRLittleEndian, ImplicitVRLittleEndian]
MUTANTS = 3000
PIXELS = b"\xe0\x7f\x10\x00"
SOP_INSTANCE = b"\x08\x00\x18\x00", b"77"
POSITION = b"\x20\x00\x32\x00", b"9"
PRIVATE = b"\x43\x00\x01\x10", b"xyz"
SERIES = b"\x20\x00\x0e\x00"


@pytest.fixture(autouse=True)
def no_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of other tests are forgotten."""
    monkeypatch.setattr(identity, "_alike", Layouts())


def walked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every header that is walked over."""
    walks: list[int] = []
    locate = identity._locate  # pyright: ignore[reportPrivateUsage]

    def spy(*arguments: object) -> object:
        walks.append(1)
        return locate(*arguments)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(identity, "_locate", spy)
    return walks


def hurt(content: bytes, begin: int, rng: np.random.Generator) -> bytes:
    """One to three bytes of the header are others, sometimes of the same kind."""
    changed = bytearray(content)
    for _ in range(int(rng.integers(1, 4))):
        at = int(rng.integers(begin, len(content) - 40))
        changed[at] = int(rng.choice([changed[at] ^ 1, ord("7"), ord("Z"), 0, int(rng.integers(0, 256))]))
    return bytes(changed)


@pytest.mark.parametrize("syntax", PLAIN)
def test_a_mutant_of_a_known_header_is_told_as_its_own_header_is(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start = file_start(syntax)
    known = start + b"".join(elements(syntax))
    walks = walked(monkeypatch)
    answers: list[Answer | None] = []
    spared = 0
    for seed in range(MUTANTS):
        read_quickly(known, len(start), syntax)
        content = hurt(known, len(start), np.random.default_rng([7, seed]))
        before = len(walks)
        answer, wanted = said_by(read_quickly(content, len(start), syntax)), header_answer(content)
        spared += len(walks) == before
        assert answer in (None, wanted), f"seed {seed}"
        answers.append(answer)
    assert MUTANTS // 20 < spared < MUTANTS, "all mutants are of the known layout, or hardly any"
    assert len(set(answers)) > MUTANTS // 20, "the mutants are too much the same to show anything"


def renamed(pieces: tuple[bytes, ...], tag: bytes, value: bytes) -> bytes:
    """The data set with other last characters in one element."""
    (own,) = (piece for piece in pieces if piece[:4] == tag)
    end = len(own) - (own[-1:] in (b"\0", b" "))
    return b"".join(pieces).replace(own, own[: end - len(value)] + value + own[end:])


@pytest.mark.parametrize("syntax", PLAIN)
def test_the_next_image_of_a_series_is_not_walked_over(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    start, pieces = file_start(syntax), elements(syntax)
    others = [renamed(pieces, tag, value) for tag, value in (SOP_INSTANCE, POSITION, PRIVATE)]
    images = [start + body for body in (b"".join(pieces), *others)]
    assert len(set(images)) == 4
    walks = walked(monkeypatch)
    for content in (*images, *images):
        assert said_by(read_quickly(content, len(start), syntax)) == header_answer(content)
    assert len(walks) == 1


@pytest.mark.parametrize("syntax", PLAIN)
def test_series_that_are_sent_together_know_their_own(syntax: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their headers are equally long."""
    start, pieces = file_start(syntax), elements(syntax)
    images = [start + renamed(pieces, SERIES, b"%d" % number) for number in (11, 22, 33)]
    walks = walked(monkeypatch)
    for content in 3 * images:
        assert said_by(read_quickly(content, len(start), syntax)) == header_answer(content)
    assert len(walks) == 3


@pytest.mark.parametrize("syntax", PLAIN)
def test_a_blank_sop_uid_of_a_known_layout_is_left_to_the_whole_header(syntax: str) -> None:
    start, pieces = file_start(syntax), elements(syntax)
    first = start + b"".join(pieces)
    (own,) = (piece for piece in pieces if piece[:4] == b"\x08\x00\x18\x00")
    blank = first.replace(own, own[:8] + bytes(len(own) - 8))
    assert read_quickly(first, len(start), syntax) is not None
    assert read_quickly(blank, len(start), syntax) is None


@pytest.mark.parametrize("syntax", PLAIN)
def test_a_header_of_a_known_layout_that_ends_early_is_not_taken_for_it(syntax: str) -> None:
    start = file_start(syntax)
    content = start + b"".join(elements(syntax))
    whole = read_quickly(content, len(start), syntax)
    answers = [read_quickly(content[:end], len(start), syntax) for end in range(len(start), len(content))]
    assert whole is not None and all(answer in (None, whole) for answer in answers)
    assert answers[0] is None


def test_headers_that_differ_where_nobody_looked_are_alike() -> None:
    layouts = Layouts[str]()
    layouts.keep(b"..AAbbCC" + PIXELS, 2, "1.2", 12, [(4, 6)], "found")
    assert layouts.find(b"..AAxyCC" + PIXELS + b"more", 2, "1.2") == "found"
    assert layouts.find(b"..AAxyCD" + PIXELS, 2, "1.2") is None
    assert layouts.find(b"..AAxyCC" + PIXELS, 2, "1.3") is None
    assert layouts.find(b"...AAxyCC" + PIXELS, 3, "1.2") == "found"
    assert layouts.find(b"..AAxyCC" + PIXELS[:3], 2, "1.2") is None


def test_the_newest_layouts_are_remembered() -> None:
    layouts = Layouts[int]()
    sizes = range(1, MAX_PLACES + 11)
    for size in sizes:
        layouts.keep(b"A" * size + PIXELS, 0, "1.2", size + 4, [], size)
    found = [layouts.find(b"A" * size + PIXELS, 0, "1.2") for size in sizes]
    assert found == [None] * 10 + list(range(11, MAX_PLACES + 11))
    for number in range(LAYOUTS_OF_A_PLACE + 1):
        layouts.keep(b"%d" % number + PIXELS, 0, "1.2", 5, [], number)
    found = [layouts.find(b"%d" % number + PIXELS, 0, "1.2") for number in range(LAYOUTS_OF_A_PLACE + 1)]
    assert found == [None, *range(1, LAYOUTS_OF_A_PLACE + 1)]


def test_several_threads_may_keep_at_once() -> None:
    layouts = Layouts[int]()

    def keep(first: int) -> None:
        for number in range(first, first + 20_000):
            layouts.keep(b"A" * (number % 200) + PIXELS, 0, "1.2", number % 200 + 4, [], number)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(keep, (0, 7, 77, 777)))
    finally:
        sys.setswitchinterval(interval)


@pytest.mark.parametrize("end", [MAX_BYTES + 1, 60])
def test_nothing_is_kept_of_a_long_header_or_of_one_that_ends_too_early(end: int) -> None:
    layouts = Layouts[str]()
    head = b"A" * (50 if end == 60 else end)
    layouts.keep(head, 0, "1.2", end, [], "found")
    assert layouts.find(head, 0, "1.2") is None


def test_zeros_behind_a_header_are_not_the_end_that_is_missing() -> None:
    """As numbers they are equal."""
    layouts = Layouts[str]()
    layouts.keep(PIXELS + bytes(8), 0, "1.2", 12, [], "found")
    assert layouts.find(PIXELS + bytes(7), 0, "1.2") is None
    assert layouts.find(PIXELS + bytes(8), 0, "1.2") == "found"
