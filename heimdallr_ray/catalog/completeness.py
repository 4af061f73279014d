"""Whether a study is complete, and why: what was seen of it, and the rules of its sender. Pure; times are durations."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from heimdallr_ray.catalog.states import Door, How
from heimdallr_ray.sources import CompletionRules

QUIET_S = 2.0
"""After this long without an image a study is shown as settling."""


TRANSFER_INCOMPLETE = "transfer_incomplete"
"""Reason code of a study that a person called complete although its last transfer had not ended as it should."""


class CloseCode(StrEnum):
    """Why a study was closed, or will be, or is not yet."""

    SENDING = "sending"
    UPLOAD_OPEN = "upload_open"
    IDLE_AFTER_RELEASE = "idle_after_release"
    IDLE = "idle"
    IDLE_AFTER_ABORT = "idle_after_abort"
    EXPECTED_COUNT = "expected_count"
    REQUIRED_SERIES = "required_series"
    HARD_MAXIMUM = "hard_maximum"
    OPERATOR = "operator"


@dataclass(frozen=True)
class SeriesSeen:
    """One series, as far as it has come."""

    modality: str
    description: str
    n_images: int


@dataclass(frozen=True)
class Observed:
    """What is known of an open study at one moment.

    Attributes:
        epoch: of the study.
        n_images: in all epochs.
        n_expected: that a header announces, Number of Study Related Instances (0020,1208); None: none does.
        series: of all epochs.
        sending: an association or upload is open that has sent to it.
        door: of that one, or of the last; None where it is not known.
        ended: how the last association that sent to it ended; None where that is not known.
        quiet_s: since its last image and the end of the last association that sent to it.
        open_s: since the first image of this epoch.
    """

    epoch: int
    n_images: int
    n_expected: int | None
    series: tuple[SeriesSeen, ...]
    sending: bool
    door: str | None
    ended: How | None
    quiet_s: float
    open_s: float


@dataclass(frozen=True)
class Verdict:
    """When the study will be closed if nothing more comes, and why; at once where `in_s` is not positive."""

    code: CloseCode
    in_s: float
    """Infinite where that cannot be said."""
    reason: str
    """For a person, and as true before the closing as after it."""


def judge(seen: Observed, rules: CompletionRules) -> Verdict:
    """What closes the study first: the quiet that its sender's way of ending asks for, or the hard maximum.

    An association that is open keeps the study open until the hard maximum. What makes a study complete by its content
    counts only for the images that come now: an epoch that opens later begins complete, so a number must be met exactly
    and required series close the first epoch alone.
    """
    last = Verdict(
        CloseCode.HARD_MAXIMUM,
        rules.max_open_s - seen.open_s,
        f"{seconds(rules.max_open_s)} after the first image, the longest that a study may stay open"
        + (f", while {_still(seen.door)}" if seen.sending else ""),
    )
    if seen.sending:
        return last
    quiet = _by_content(seen, rules) or _by_quiet(seen, rules)
    return min(last, quiet, key=lambda one: one.in_s)


def held_open(seen: Observed, rules: CompletionRules) -> Verdict:
    """Why the study is not closed while somebody sends to it, and when an upload without a word counts as given up."""
    last = f"at the latest {seconds(rules.max_open_s)} after the first image"
    if seen.door not in _BY_HTTP:
        return Verdict(
            CloseCode.SENDING, math.inf, f"an association is open that has sent to it; it will be closed {last}"
        )
    quiet = seen.quiet_s >= min(QUIET_S, rules.after_abort_s)
    return Verdict(
        CloseCode.UPLOAD_OPEN,
        min(rules.after_abort_s - seen.quiet_s, rules.max_open_s - seen.open_s) if quiet else math.inf,
        f"its upload has not been ended; it is given up {seconds(rules.after_abort_s)} after its last image, {last}",
    )


def broken_words(door: str | None, ended: How | None, *, still_open: bool) -> str:
    """How the last transfer was left, where it has not ended properly; empty where it has, or nothing is known."""
    if still_open:
        return _still(door)
    what = _noun(door)
    return {How.ABORTED: f"the last {what} was broken off", How.LOST: f"the last {what} was {_lost(door)}"}.get(
        ended or How.RELEASED, ""
    )


_BY_HTTP = frozenset({Door.UPLOAD.value, Door.STOW.value})


def _noun(door: str | None) -> str:
    return "upload" if door in _BY_HTTP else "association"


def _lost(door: str | None) -> str:
    return "left open" if door in _BY_HTTP else "lost"


def _still(door: str | None) -> str:
    return "an upload was still open" if door in _BY_HTTP else "an association was still sending"


def seconds(value: float) -> str:
    """A duration for a person."""
    if value >= 7200 and value % 3600 == 0:
        return f"{value / 3600:g} hours"
    if value >= 120 and value % 60 == 0:
        return f"{value / 60:g} minutes"
    return f"{value:g} s"


def _by_content(seen: Observed, rules: CompletionRules) -> Verdict | None:
    expected = rules.expected_instances or seen.n_expected
    if expected and (seen.n_images == expected or (seen.epoch == 1 and seen.n_images > expected)):
        who = f"the rule {rules.source} expects" if rules.expected_instances else "the headers announce"
        return Verdict(CloseCode.EXPECTED_COUNT, 0.0, f"all {expected} images that {who} are here")
    if (
        seen.epoch == 1
        and rules.required_series
        and all(
            any(wanted.is_met_by(one.modality, one.description, one.n_images) for one in seen.series)
            for wanted in rules.required_series
        )
    ):
        reason = f"every series that the rule {rules.source} requires is here"
        # A sender that makes an association for each image is between two of them for a moment.
        return Verdict(CloseCode.REQUIRED_SERIES, min(QUIET_S, rules.after_release_s) - seen.quiet_s, reason)
    return None


def _by_quiet(seen: Observed, rules: CompletionRules) -> Verdict:
    limits = {
        How.RELEASED: (
            CloseCode.IDLE_AFTER_RELEASE,
            rules.after_release_s,
            " after the last sender had ended properly",
        ),
        How.ABORTED: (
            CloseCode.IDLE_AFTER_ABORT,
            rules.after_abort_s,
            f" after {broken_words(seen.door, seen.ended, still_open=False)}",
        ),
        How.LOST: (
            CloseCode.IDLE_AFTER_ABORT,
            rules.after_abort_s,
            f" after {broken_words(seen.door, seen.ended, still_open=False)}",
        ),
        None: (CloseCode.IDLE, rules.idle_s, ""),
    }
    code, limit_s, after = limits[seen.ended]
    return Verdict(code, limit_s - seen.quiet_s, f"{seconds(limit_s)} without an image{after}")
