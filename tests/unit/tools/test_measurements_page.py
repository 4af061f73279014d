from __future__ import annotations

import re

import pytest

from heimdallr_ray.metrics.catalogue import CATALOGUE
from heimdallr_ray.reasons import SENTENCES
from tools import measurements_page


def test_the_tables_are_what_the_package_does() -> None:
    text = measurements_page.OUTPUT.read_text(encoding="utf-8")
    assert measurements_page.page(text) == text, "run `make docs`"


def test_every_code_and_every_quantity_is_there() -> None:
    text = measurements_page.OUTPUT.read_text(encoding="utf-8")
    assert [code for code in SENTENCES if f"| `{code}` |" not in text] == []
    quantities = [quantity.id for metric in CATALOGUE for quantity in metric.quantities]
    assert [name for name in quantities if f"| `{name}` |" not in text] == []


def test_every_code_that_the_words_name_exists() -> None:
    text = measurements_page.OUTPUT.read_text(encoding="utf-8")
    words = re.sub(r"<!-- (\w+):.*?<!-- /\1 -->", "", text, flags=re.DOTALL)
    named = set(re.findall(r"`([a-z][a-z0-9_]+)`", words))
    assert {"tilt", "variable_spacing", "not_ct"} <= named
    assert named <= set(SENTENCES)


def test_a_page_without_a_place_for_a_table_is_refused() -> None:
    with pytest.raises(ValueError, match="measured"):
        measurements_page.page("# Nothing")
