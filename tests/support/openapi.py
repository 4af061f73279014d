"""Writes dashboard/openapi.json, from which the web app's types are made (`npm run types`).

python -m tests.support.openapi
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from heimdallr_ray.api.app import create_app
from tests.support.seeded import services

TARGET = Path(__file__).parents[2] / "dashboard" / "openapi.json"


def document() -> str:
    """The OpenAPI document of this version."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(services(Path(folder)))
        return json.dumps(app.openapi(), indent=1, sort_keys=True) + "\n"


if __name__ == "__main__":
    TARGET.write_text(document(), encoding="utf-8")
