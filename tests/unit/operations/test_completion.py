"""The rules of completion in words."""

from __future__ import annotations

from heimdallr_ray.operations.completion import completion_lines
from heimdallr_ray.sources import CompletionPolicy, CompletionRules, RequiredSeries, SourceRule


def test_every_rule_is_said_with_whom_it_is_about() -> None:
    site = CompletionRules(idle_s=60, after_release_s=15, after_abort_s=300, max_open_s=7200)
    rule = SourceRule(
        name="MR",
        calling_aes=("MR1", "MR2"),
        addresses=("10.1.0.0/16",),
        doors=("dicom",),
        settle_after_release_seconds=30,
        at_max_open="fail",
        expected_instances=7,
        required_series=(RequiredSeries(description="*t1*", modality="MR", min_images=20), RequiredSeries()),
    )
    assert list(completion_lines(CompletionPolicy(site, (rule,)))) == [
        (
            "completion",
            "closed 15 s after a release, 5 minutes after an abort, 60 s where neither is known, in any case 2 hours "
            "after the first image",
        ),
        (
            "source MR",
            "MR1 or MR2, from 10.1.0.0/16, by dicom: closed 30 s after a release, 5 minutes after an abort, 60 s where "
            "neither is known, early at 7 images, early with a MR series *t1* of 20 images and a series *, in any case "
            "2 hours after the first image (then it fails)",
        ),
    ]
