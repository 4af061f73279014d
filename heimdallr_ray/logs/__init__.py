"""The log of this installation: JSON lines in `log_dir`, one file for each part, bounded, without patient data."""

from __future__ import annotations

from heimdallr_ray.logs.setup import SUFFIX, LogPlace, close, configure, configure_at, place, require_writable

__all__ = ["SUFFIX", "LogPlace", "close", "configure", "configure_at", "place", "require_writable"]
