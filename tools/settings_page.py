"""Writes docs/settings.md from heimdallr_ray.config.Settings; a test makes it again and compares."""

from __future__ import annotations

import sys
import types
import typing
from pathlib import Path
from typing import Literal

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from heimdallr_ray.config import ENV_PREFIX, MIN_SECRET_LENGTH, NOT_SETTINGS, Settings
from heimdallr_ray.sources import SourceRule

ROOT = Path(__file__).resolve().parents[1]
OUTPUT = ROOT / "docs" / "settings.md"
WORDS: tuple[tuple[type, str], ...] = (
    (str, "text"),
    (int, "integer"),
    (float, "number"),
    (bool, "true or false"),
    (Path, "path"),
    (SecretStr, "secret text"),
    (SourceRule, "tables"),
)


def page() -> str:
    """Every setting with its variable, default and meaning, as Markdown, in the order of the class."""
    others = ", ".join(f"`{name}`" for name in sorted(NOT_SETTINGS))
    rows = [
        f"| `{name}` | `{ENV_PREFIX}{name.upper()}` | {_kind(field)} | {_default(field)} | {field.description} |"
        for name, field in Settings.model_fields.items()
    ]
    return "\n".join(
        [
            "# Settings",
            "Written by `make docs` from `heimdallr_ray/config/`; a test makes it again and compares.",
            "",
            "A setting is taken from the command line where it has an option there, else from its variable, else",
            "from the TOML file that `--config` or `HEIMDALLR_CONFIG` names, else it has its default. An unknown key,",
            f"a malformed file or value, a secret of less than {MIN_SECRET_LENGTH} characters, or an insecure",
            "combination stops the start and says why. Lists are written with commas in variables and as arrays in",
            "the file. An empty variable counts as not set.",
            "",
            "| setting | variable | values | default | meaning |",
            "|---|---|---|---|---|",
            *rows,
            "",
            f"Variables with this prefix that are not settings: {others}.",
            "",
        ]
    )


def _kind(field: FieldInfo) -> str:
    limits = {name: value for rule in field.metadata for name, value in _limits(rule).items()}
    bounds = [
        f"{text} {limits[name]:g}"
        for name, text in (("ge", "from"), ("gt", "more than"), ("le", "to"), ("lt", "less than"))
        if name in limits
    ]
    return " ".join([_type_name(field.annotation), *bounds])


def _limits(rule: object) -> dict[str, float]:
    return {name: value for name in ("ge", "gt", "le", "lt") if (value := getattr(rule, name, None)) is not None}


def _type_name(annotation: object) -> str:
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in typing.get_args(annotation))
    if origin is tuple:
        return f"list of {_type_name(typing.get_args(annotation)[0])}"
    if origin in (typing.Union, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(annotation) if part is not type(None))
    for known, word in WORDS:
        if annotation is known:
            return word
    raise TypeError(f"tools/settings_page.py has no word for {annotation}")


def _default(field: FieldInfo) -> str:
    value = field.get_default()
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if value in ("", None, ()):
        return "empty"
    if isinstance(value, Path) and value.is_relative_to(Path.home()):
        return f"`~/{value.relative_to(Path.home())}`"
    return f"`{value}`"


def main() -> int:
    """Write the page."""
    OUTPUT.write_text(page(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
