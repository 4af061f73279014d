"""What all parts of the settings have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

ENV_PREFIX: Final = "HEIMDALLR_"


class SettingsPart(BaseSettings):
    """Fields of one topic; `Settings` is made of all of them."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` passes in: no hidden .env file, no secret folder, no second reading of the environment."""
        return (init_settings,)


def absolute(path: Path | None) -> Path | None:
    """The path seen from everywhere: replicas work in other folders than the one in which the stack is started."""
    return None if path is None else path.expanduser().absolute()
