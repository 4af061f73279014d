from __future__ import annotations

from heimdallr_ray.config import Settings
from tools import settings_page


def test_the_page_is_what_the_settings_are() -> None:
    assert settings_page.OUTPUT.read_text(encoding="utf-8") == settings_page.page(), "run `make docs`"


def test_every_setting_is_described() -> None:
    bare = [name for name, field in Settings.model_fields.items() if not field.description]
    assert not bare
    page = settings_page.page()
    assert [name for name in Settings.model_fields if f"| `{name}` | `HEIMDALLR_{name.upper()}` |" not in page] == []
