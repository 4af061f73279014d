"""Words are found in any case, alone, and not inside other words."""

from __future__ import annotations

import pytest

from heimdallr_ray.dicom.words import first_word, spans


@pytest.mark.parametrize("text", ["mip", "Thin MIP 5.0", "MIP_axial", "ax-mip", "(MIP)", "3D MIP", "mip10"[:3]])
def test_a_word_is_found(text: str) -> None:
    assert first_word(text, ("mip",)) == "mip"


@pytest.mark.parametrize("text", ["hemipelvis", "MIPs", "mip10", "ümip", "", "m ip"])
def test_a_part_of_a_word_is_not(text: str) -> None:
    assert first_word(text, ("mip",)) is None


def test_words_with_signs_at_their_ends() -> None:
    assert first_word("Abdomen C+", ("c+",)) == "c+"
    assert first_word("abc+", ("c+",)) is None
    assert spans("a venous b venous", ("venous",)) == [(2, 8, "venous"), (11, 17, "venous")]
