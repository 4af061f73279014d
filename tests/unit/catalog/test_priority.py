"""Ours and theirs on one scale."""

from __future__ import annotations

import itertools

import pytest

from heimdallr_ray.catalog.priority import effective_class, higher_order, ordered_class
from heimdallr_ray.catalog.states import TERMINAL, TRANSITIONS, StudyState, Urgency, require_transition
from heimdallr_ray.errors import IllegalTransition


@pytest.mark.parametrize(
    ("urgency", "order", "effective"),
    [
        (None, None, 3),
        ("P0", None, 0),
        ("P3", "STAT", 1),
        ("P0", "STAT", 0),
        ("P2", "HIGH", 1),
        ("P2", "ROUTINE", 2),
        (None, "nonsense", 3),
    ],
)
def test_the_more_urgent_counts(urgency: str | None, order: str | None, effective: int) -> None:
    assert effective_class(urgency, order) == effective


def test_no_order_is_ever_lowered_by_us() -> None:
    for urgency, order in itertools.product([None, *Urgency], ["STAT", "HIGH", "ROUTINE", None]):
        assert effective_class(urgency, order) <= ordered_class(order)


@pytest.mark.parametrize(
    ("one", "other", "higher"),
    [
        ("LOW", "STAT", "STAT"),
        ("HIGH", "ROUTINE", "HIGH"),
        (None, "LOW", "LOW"),
        ("LOW", None, "LOW"),
        (None, None, None),
    ],
)
def test_the_higher_order_stands(one: str | None, other: str | None, higher: str | None) -> None:
    assert higher_order(one, other) == higher


def test_every_state_has_its_row_and_only_listed_moves_are_allowed() -> None:
    assert set(TRANSITIONS) == set(StudyState)
    for old, new in itertools.product(StudyState, StudyState):
        if new in TRANSITIONS[old]:
            require_transition(old, new)
        else:
            with pytest.raises(IllegalTransition):
                require_transition(old, new)
    # A late image reopens whatever is closed; only a superseded study stays as it is.
    assert {state for state in TERMINAL if StudyState.RECEIVING not in TRANSITIONS[state]} == {StudyState.SUPERSEDED}
