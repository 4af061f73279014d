"""Words are found in any case, alone, and not inside other words."""

from __future__ import annotations

import pytest

from heimdallr_ray.dicom.words import first_word, longest, spans


@pytest.mark.parametrize("text", ["mip", "Thin MIP 5.0", "MIP_axial", "ax-mip", "(MIP)", "3D MIP", "MIP10", "5 mm_mip"])
def test_a_word_is_found(text: str) -> None:
    assert first_word(text, ("mip",)) == "mip"


@pytest.mark.parametrize("text", ["hemipelvis", "MIPs", "ümip", "", "m ip"])
def test_a_part_of_a_word_is_not(text: str) -> None:
    assert first_word(text, ("mip",)) is None


def test_words_with_signs_at_their_ends() -> None:
    assert first_word("Abdomen C+", ("c+",)) == "c+"
    assert first_word("abc+", ("c+",)) is None
    assert spans("a venous b venous", ("venous",)) == [(2, 8, "venous"), (11, 17, "venous")]


def test_a_space_in_a_word_stands_for_what_parts_words() -> None:
    for text in ("NON CON", "non-con", "NonCon", "non_con", "ABD NON - CON 2.5"):
        assert first_word(text, ("non con",)) == "non con"
    assert first_word("non.con", ("non con",)) is None


@pytest.mark.parametrize(("text", "word"), [("C-SPINE", "c-"), ("C-5", "c-"), ("W/contrast", "w"), ("level 10", "1")])
def test_signs_and_digits_at_the_end_bind(text: str, word: str) -> None:
    assert first_word(text, (word,)) == (word if word == "w" else None)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("A+C", "+c"),
        ("+C5", "+c"),
        ("+C/T", "+c"),
        ("-C-SPINE", "-c"),
        ("-C/+C", "-c"),
        ("ABD +C 5mm", "+c"),
        ("(-C)", "-c"),
    ],
)
def test_signs_at_the_beginning_bind_too(text: str, word: str) -> None:
    assert first_word(text, (word,)) == (None if text in ("A+C", "+C5", "+C/T", "-C-SPINE") else word)


def test_signs_alone_stand_anywhere() -> None:
    assert [first_word(text, ("+/-",)) for text in ("C+/-", "+/-C", "CT+/-CONTRAST", "+ / -")] == [*["+/-"] * 3, None]


def test_of_overlapping_words_the_longest_is_left() -> None:
    assert longest(spans("post contrast, contrast", ("contrast", "post contrast"))) == [
        (15, 23, "contrast"),
        (0, 13, "post contrast"),
    ]
