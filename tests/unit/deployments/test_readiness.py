"""Each part in one word: asked with bounds, kept for a moment, never taken for ready."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping

import pytest
import yaml

from heimdallr_ray.api.services import WELL
from heimdallr_ray.clock import SystemClock
from heimdallr_ray.deployments import readiness
from heimdallr_ray.deployments.ingress import MAY_SLEEP
from heimdallr_ray.deployments.readiness import Components, word_of
from heimdallr_ray.operations.application import serve_config_path


@pytest.mark.parametrize(
    ("status", "replicas", "may_sleep", "word"),
    [
        ("HEALTHY", {"RUNNING": 1}, False, "ready"),
        ("HEALTHY", {}, True, "idle"),
        ("HEALTHY", {}, False, "starting"),
        ("HEALTHY", {"STARTING": 1}, True, "starting"),
        ("UPSCALING", {"RUNNING": 1, "STARTING": 1}, False, "ready"),
        ("UPDATING", {"STARTING": 1}, False, "starting"),
        ("UNHEALTHY", {"RUNNING": 1}, False, "unhealthy"),
        ("DEPLOY_FAILED", {}, True, "failed"),
    ],
)
def test_a_deployment_is_ready_only_where_a_replica_has_loaded(
    status: str, replicas: dict[str, int], may_sleep: bool, word: str
) -> None:
    assert word_of(status, replicas, may_sleep=may_sleep) == word


def test_only_deployments_that_may_scale_to_zero_may_sleep() -> None:
    document = yaml.safe_load(serve_config_path().read_text(encoding="utf-8"))
    deployments = document["applications"][0]["deployments"]
    assert {one["name"] for one in deployments if one["autoscaling_config"]["min_replicas"] == 0} == set(MAY_SLEEP)


def test_a_part_that_hangs_or_breaks_is_silent_and_delays_nobody() -> None:
    released, asked = threading.Event(), list[str]()

    def hangs() -> Mapping[str, str]:
        asked.append("hangs")
        released.wait(30)
        return {"b": "ready"}

    def breaks() -> Mapping[str, str]:
        raise ConnectionError("gone")

    questions = {("a",): lambda: {"a": "ready"}, ("b",): hangs, ("c",): breaks, ("d", "a"): lambda: {"d": "draining"}}
    components = Components(questions, SystemClock(), fresh_s=0.0, answer_s=0.2)
    began = time.monotonic()
    assert components() == {"a": "no answer", "b": "no answer", "c": "no answer", "d": "draining"}
    components()
    assert time.monotonic() - began < 5
    assert asked == ["hangs"]
    released.set()
    time.sleep(0.1)
    assert components()["b"] == "ready"


def test_answers_are_kept_for_a_moment() -> None:
    asked: list[int] = []

    def question() -> Mapping[str, str]:
        asked.append(1)
        return {"a": "ready"}

    components = Components({("a",): question}, SystemClock(), fresh_s=0.5)
    for _ in range(20):
        assert components() == {"a": "ready"}
    assert len(asked) == 1
    time.sleep(0.6)
    components()
    assert len(asked) == 2


def test_well_are_only_the_words_of_parts_that_work() -> None:
    silent = {readiness.SILENT, readiness.STARTING, readiness.UNHEALTHY, readiness.FAILED, readiness.ABSENT}
    assert not WELL & silent
