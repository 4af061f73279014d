"""The verdict on a study, from what was seen of it and the rules of its sender."""

from __future__ import annotations

from dataclasses import replace

import pytest

from heimdallr_ray.catalog.completeness import CloseCode, Observed, SeriesSeen, judge, seconds
from heimdallr_ray.catalog.states import How
from heimdallr_ray.sources import CompletionRules, RequiredSeries

RULES = CompletionRules(idle_s=60, after_release_s=15, after_abort_s=300, max_open_s=7200)
SEEN = Observed(
    epoch=1,
    n_images=10,
    n_expected=None,
    series=(),
    sending=False,
    door="dicom",
    ended=None,
    quiet_s=10.0,
    open_s=100.0,
)


@pytest.mark.parametrize(
    ("ended", "code", "in_s"),
    [
        (How.RELEASED, CloseCode.IDLE_AFTER_RELEASE, 5),
        (None, CloseCode.IDLE, 50),
        (How.ABORTED, CloseCode.IDLE_AFTER_ABORT, 290),
        (How.LOST, CloseCode.IDLE_AFTER_ABORT, 290),
    ],
)
def test_quiet(ended: How | None, code: CloseCode, in_s: float) -> None:
    verdict = judge(replace(SEEN, ended=ended), RULES)
    assert (verdict.code, verdict.in_s) == (code, in_s)


@pytest.mark.parametrize("ended", [None, *How])
def test_while_somebody_sends_only_the_maximum_ends_it(ended: How | None) -> None:
    seen = replace(SEEN, sending=True, ended=ended, quiet_s=9999, n_expected=10)
    assert judge(seen, RULES).code is CloseCode.HARD_MAXIMUM
    assert judge(seen, RULES).in_s == 7100


def test_the_maximum_comes_first_where_it_is_nearer_than_the_quiet() -> None:
    verdict = judge(replace(SEEN, ended=How.ABORTED, open_s=7000), RULES)
    assert (verdict.code, verdict.in_s) == (CloseCode.HARD_MAXIMUM, 200)


@pytest.mark.parametrize(
    ("epoch", "n_images", "header", "rule", "complete"),
    [
        (1, 10, 10, None, True),
        (1, 11, 10, None, True),
        (1, 9, 10, None, False),
        (1, 10, 99, 10, True),
        (1, 10, None, None, False),
        (1, 10, 0, None, False),
        (2, 10, 10, None, True),
        (2, 11, 10, None, False),
    ],
)
def test_an_expected_number(epoch: int, n_images: int, header: int | None, rule: int | None, *, complete: bool) -> None:
    rules = replace(RULES, expected_instances=rule, source="CT")
    verdict = judge(replace(SEEN, epoch=epoch, n_images=n_images, n_expected=header), rules)
    assert (verdict.code is CloseCode.EXPECTED_COUNT) is complete
    assert (verdict.in_s <= 0) is complete


def test_required_series_want_a_moment_of_quiet_and_the_first_epoch() -> None:
    rules = replace(RULES, required_series=(RequiredSeries(description="soft*", min_images=5),), source="CT")
    few = replace(SEEN, series=(SeriesSeen("CT", "Soft", 4), SeriesSeen("CT", "Lung", 50)))
    enough = replace(SEEN, series=(SeriesSeen("CT", "Soft", 5),))
    assert judge(few, rules).code is CloseCode.IDLE
    assert judge(enough, rules).code is CloseCode.REQUIRED_SERIES
    assert judge(replace(enough, quiet_s=0.5), rules).in_s == 1.5
    assert judge(replace(enough, epoch=2), rules).code is CloseCode.IDLE


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (15, "15 s"),
        (0.5, "0.5 s"),
        (90, "90 s"),
        (120, "2 minutes"),
        (300, "5 minutes"),
        (3600, "60 minutes"),
        (7200, "2 hours"),
    ],
)
def test_durations_are_said_in_words(value: float, words: str) -> None:
    assert seconds(value) == words
