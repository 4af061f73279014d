"""Ray Serve is imported here once: its own modules use options of pydantic that pydantic has deprecated."""

from __future__ import annotations

import importlib
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    importlib.import_module("ray.serve")
