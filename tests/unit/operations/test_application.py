"""Serve's own words on its start do not stand between ours; its warnings do."""

from __future__ import annotations

import importlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from heimdallr_ray.config import load
from heimdallr_ray.operations import application

with warnings.catch_warnings():
    # Ray uses a deprecated form of pydantic at its import.
    warnings.simplefilter("ignore", DeprecationWarning)
    api: Any = importlib.import_module("ray.serve._private.api")


class Client:
    def __init__(self) -> None:
        self.applications: list[str] = []
        self.gpus: dict[str, float | None] = {}

    def deploy_apps(self, config: Any) -> None:
        self.applications += [one.name for one in config.applications]
        for deployment in config.applications[0].deployments:
            self.gpus[deployment.name] = deployment.ray_actor_options.num_gpus


@pytest.fixture
def told() -> Iterator[list[str]]:
    """What reaches a handler of Serve's logger, whose level is put back."""
    messages: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, handler = logging.getLogger(application.SERVE_LOGGER), Keep()
    level = logger.level
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    yield messages
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.mark.parametrize(("level", "expected"), [("INFO", ["a warning"]), ("DEBUG", ["Started Serve", "a warning"])])
def test_only_warnings_of_serve_are_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str], level: str, expected: list[str]
) -> None:
    client = Client()

    def serve_start(**_: Any) -> Client:
        api.logger.info("Started Serve")
        api.logger.warning("a warning")
        return client

    monkeypatch.setattr(api, "serve_start", serve_start)
    settings = load({}, data_dir=tmp_path, profile="demo", log_level=level)
    application.deploy(settings, tmp_path / "settings.json", "build")
    assert told == expected
    assert client.applications == ["heimdallr"]


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 1), ("cpu", 0)])
def test_what_takes_the_gpu_reserves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, told: list[str], device: str, gpus: int
) -> None:
    client = Client()
    monkeypatch.setattr(api, "serve_start", lambda **_: client)
    settings = load({}, data_dir=tmp_path, profile="demo", device=device)
    application.deploy(settings, tmp_path / "settings.json", "build")
    assert {name: number or 0 for name, number in client.gpus.items()} == {
        "Ingress": 0,
        "StudyConsumer": 0,
        "Segmenter": gpus,
        "MedGemma": 0,
        "ReportBuilder": 0,
    }
    assert told == []
