"""Settings from the file, the environment and the command line, and to those who run in other processes."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, cast

from pydantic import SecretStr, ValidationError

from heimdallr_ray.config.part import ENV_PREFIX
from heimdallr_ray.config.settings import Settings
from heimdallr_ray.errors import BadSetting

NOT_SETTINGS: Final = frozenset({"HEIMDALLR_TEST_DATA", "HEIMDALLR_CONFIG"})
"""Variables with our prefix that are not settings: the tests' data folder and the path of heimdallr.toml."""


def load(environ: Mapping[str, str] | None = None, config_file: Path | None = None, **overrides: object) -> Settings:
    """The settings from `config_file` (or HEIMDALLR_CONFIG), the environment and `overrides`, the latter winning.

    Raises:
        BadSetting: an unknown key, a malformed file or value, or an insecure combination; says which.
    """
    env = os.environ if environ is None else environ
    path = config_file or (Path(env["HEIMDALLR_CONFIG"]) if env.get("HEIMDALLR_CONFIG") else None)
    values: dict[str, Any] = {}
    if path is not None:
        try:
            values.update(tomllib.loads(path.read_text(encoding="utf-8")))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
            raise BadSetting(f"cannot read {path.name}: {error}") from error
    for key, text in env.items():
        if key.startswith(ENV_PREFIX) and key not in NOT_SETTINGS and text != "":
            name = key.removeprefix(ENV_PREFIX).lower()
            values[name] = tuple(part.strip() for part in text.split(",")) if _is_list(name) else text
    values.update({key: value for key, value in overrides.items() if value is not None})
    try:
        return Settings(**values)
    except ValidationError as error:
        raise BadSetting("; ".join(_words(cast("dict[str, Any]", one), env) for one in error.errors())) from error


def _is_list(name: str) -> bool:
    field = Settings.model_fields.get(name)
    # A list of tables has no form with commas.
    return field is not None and field.annotation == tuple[str, ...]


def _words(problem: Mapping[str, Any], env: Mapping[str, str]) -> str:
    """What a person is told of one of pydantic's findings, in the names that the person wrote."""
    name = ".".join(map(str, problem["loc"]))
    if problem["type"] != "extra_forbidden":
        said = str(problem["msg"]).removeprefix("Value error, ")
        return f"{name}: {said}" if name else said
    variable = f"{ENV_PREFIX}{name.upper()}"
    written = next((key for key in env if key.upper() == variable), None)
    near = difflib.get_close_matches(name, Settings.model_fields, 1)
    shown = [one if written is None else f"{ENV_PREFIX}{one.upper()}" for one in near]
    hint = f"did you mean {shown[0]}?" if shown else "docs/settings.md has them all"
    return f"unknown setting {written or name}; {hint}"


def save_effective(settings: Settings, path: Path) -> None:
    """Write the settings, secrets included, to `path` with mode 0600, for the replicas of this installation."""
    values = settings.model_dump(mode="json")
    for name, value in settings.model_dump().items():
        if isinstance(value, SecretStr):
            values[name] = value.get_secret_value()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(values, file)


def load_effective(path: Path) -> Settings:
    """The settings that `save_effective` wrote.

    Raises:
        BadSetting: the file is missing or was not written by this version.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BadSetting(f"cannot read {path.name}: {error}") from error
    return load({}, **values)
