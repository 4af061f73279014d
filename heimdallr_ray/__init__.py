"""heimdallr_ray: a radiology pipeline on Ray, from DICOM association to triaged worklist."""

from __future__ import annotations

__version__ = "0.1.0"
