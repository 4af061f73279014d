"""The road's time counts from the last image; of the wait for more only what the settings ask for is left out."""

from __future__ import annotations

import pytest

from bench.road import last_image_to_done_s


def test_what_the_closing_takes_beyond_the_idle_wait_is_the_roads_own() -> None:
    assert last_image_to_done_s({"settle": 2.0, "after_close": 20.0}, 2.0) == pytest.approx(20.0)
    assert last_image_to_done_s({"settle": 2.7, "after_close": 20.0}, 2.0) == pytest.approx(20.7)


@pytest.mark.parametrize("absent", ["settle", "after_close"])
def test_no_figure_is_made_up(absent: str) -> None:
    with pytest.raises(ValueError, match=f"{absent} are not known"):
        last_image_to_done_s({"settle": 2.0, "after_close": 20.0, absent: None}, 2.0)
