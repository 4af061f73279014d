from __future__ import annotations

import pytest

from heimdallr_ray.errors import NotFound
from heimdallr_ray.segmentation.tasks import task_spec


def test_an_unknown_task_is_refused() -> None:
    with pytest.raises(NotFound):
        task_spec("heart_of_gold")
