"""Demo parts: a synthetic CT and the small networks trained on it; never for clinical use."""

from __future__ import annotations

from pathlib import Path


def weights_dir() -> Path:
    """The packaged folder of demo weights in TotalSegmentator's layout, with its `manifest.json`.

    The folder serves as `TOTALSEG_WEIGHTS_PATH`. Each model's `dataset.json` carries the marker of synthetic weights.
    """
    return Path(__file__).resolve().parent / "weights"
