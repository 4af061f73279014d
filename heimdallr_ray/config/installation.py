"""Where an installation keeps its things, and its HTTP door."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Self, cast

from pydantic import Field, SecretStr, model_validator

from heimdallr_ray.config.network import is_loopback
from heimdallr_ray.config.part import SettingsPart

MIN_SECRET_LENGTH: Final = 16


class InstallationSettings(SettingsPart):
    """Folders, database, HTTP, uploads."""

    profile: Literal["demo", "site"] = Field(
        "site", description="`demo` uses the synthetic demo weights; `site` refuses them."
    )
    data_dir: Path = Field(
        Path.home() / ".local" / "share" / "heimdallr",
        description="Folder of the database, the spool, the blobs and the logs.",
    )
    database_url: str = Field("", description="SQLAlchemy URL; empty: SQLite in `data_dir`.")

    server_host: str = Field("127.0.0.1", description="Address that HTTP binds to.")
    server_port: int = Field(8001, ge=0, le=65535, description="Port of the API and the web pages.")
    api_token: SecretStr = Field(
        SecretStr(""), description="Bearer token for the API; needed when HTTP is not on loopback."
    )
    upload_token: SecretStr = Field(
        SecretStr(""), description="Token for uploads, as bearer or X-Upload-Token; empty: `api_token` alone decides."
    )
    max_upload_mib: int = Field(4096, ge=1, description="Largest ZIP that an upload may send.")
    max_unpacked_mib: int = Field(16384, ge=1, description="Largest total size that a ZIP may unpack to.")
    max_zip_entries: int = Field(50000, ge=1, description="Most entries that a ZIP may hold.")

    @model_validator(mode="after")
    def _http_is_secure(self) -> Self:
        for name in ("api_token", "upload_token"):
            secret = cast(SecretStr, getattr(self, name)).get_secret_value()
            if secret and len(secret) < MIN_SECRET_LENGTH:
                raise ValueError(f"{name} needs at least {MIN_SECRET_LENGTH} characters")
        if not is_loopback(self.server_host) and not self.api_token.get_secret_value():
            raise ValueError("server_host is not loopback: set api_token first")
        return self

    @property
    def resolved_database_url(self) -> str:
        """The database to use."""
        return self.database_url or f"sqlite:///{self.data_dir / 'catalog.sqlite'}"

    @property
    def spool_dir(self) -> Path:
        """Where received objects are made durable before they are acknowledged."""
        return self.data_dir / "spool"

    @property
    def blob_dir(self) -> Path:
        """Root of the content-addressed store."""
        return self.data_dir / "blobs"

    @property
    def run_dir(self) -> Path:
        """Lock, token and effective settings of the running supervisor."""
        return self.data_dir / "run"

    @property
    def log_dir(self) -> Path:
        """Where the supervisor and its children write their logs."""
        return self.data_dir / "logs"
