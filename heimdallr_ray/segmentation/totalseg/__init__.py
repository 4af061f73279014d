"""TotalSegmentator's models in predictors that stay loaded; the only place besides demo/ that imports torch."""

from __future__ import annotations

import os

# Read by torch at its first allocation, so it is set before torch is imported: huge pages for large tensors. One page
# fault per 4 KiB of every activation costs more CPU time than a small network itself.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
