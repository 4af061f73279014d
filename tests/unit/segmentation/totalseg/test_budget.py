from __future__ import annotations

import pytest

from heimdallr_ray.segmentation.totalseg.budget import MIB, Need, leaving

THERE = [(1, Need(100, 50)), (2, Need(100, 300)), (3, Need(100, 20))]


@pytest.mark.parametrize(
    ("limit", "coming", "expected"),
    [
        (None, Need(9999, 9999), ()),
        (700, Need(100, 10), ()),
        (699, Need(100, 10), (1,)),
        (600, Need(100, 10), (1,)),
        (599, Need(100, 10), (1, 2)),
        (220, Need(100, 20), (1, 2)),
        (219, Need(100, 20), (1, 2, 3)),
        (50, Need(100, 20), (1, 2, 3)),
    ],
)
def test_those_used_longest_ago_leave_until_weights_and_the_largest_activations_fit(
    limit: int | None, coming: Need, expected: tuple[int, ...]
) -> None:
    assert leaving(THERE, coming, limit) == expected


def test_nobody_leaves_an_empty_device() -> None:
    assert leaving([], Need(10, 10), 5) == ()


def test_a_need_is_weights_and_activations() -> None:
    assert Need(3 * MIB, MIB).mib == 4.0
