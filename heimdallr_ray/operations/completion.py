"""The rules of completion in words, for `heimdallr doctor`."""

from __future__ import annotations

from collections.abc import Iterator

from heimdallr_ray.catalog.completeness import seconds
from heimdallr_ray.sources import CompletionPolicy, CompletionRules, RequiredSeries, SourceRule


def completion_lines(policy: CompletionPolicy) -> Iterator[tuple[str, str]]:
    """Name and words of the site's own rule and of each source's, in the order in which they are asked."""
    yield "completion", _times(policy.site)
    for rule in policy.sources:
        yield f"source {rule.name}", f"{_who(rule)}: {_times(policy.rules_of(rule))}"


def _times(rules: CompletionRules) -> str:
    early = [f"at {rules.expected_instances} images"] if rules.expected_instances else []
    early += [f"with {' and '.join(map(_series, rules.required_series))}"] if rules.required_series else []
    parts = [
        f"closed {seconds(rules.after_release_s)} after a release",
        f"{seconds(rules.after_abort_s)} after an abort",
        f"{seconds(rules.idle_s)} where neither is known",
        *(f"early {words}" for words in early),
        f"in any case {seconds(rules.max_open_s)} after the first image"
        + (" (then it fails)" if rules.at_max_open == "fail" else ""),
        *(["labels made ahead"] if rules.speculate else []),
    ]
    return ", ".join(parts)


def _who(rule: SourceRule) -> str:
    named = (("", rule.calling_aes), ("from ", rule.addresses), ("by ", rule.doors))
    return ", ".join(f"{word}{' or '.join(values)}" for word, values in named if values)


def _series(wanted: RequiredSeries) -> str:
    least = "" if wanted.min_images == 1 else f" of {wanted.min_images} images"
    return f"a {wanted.modality + ' ' if wanted.modality else ''}series {wanted.description}{least}"
