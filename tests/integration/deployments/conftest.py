"""Ray Serve is imported here once: its own modules use options of pydantic that pydantic has deprecated."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator

import pytest

from heimdallr_ray import logs

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    importlib.import_module("ray.serve")


@pytest.fixture(autouse=True)
def _log_is_left() -> Iterator[None]:
    """A replica makes the log of its process, which here is the process of all tests."""
    yield
    logs.close()
