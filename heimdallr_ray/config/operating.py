"""Start of the stack, Ray, audit, log."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, field_validator

from heimdallr_ray.config.part import SettingsPart, absolute


class OperatingSettings(SettingsPart):
    """How the stack is run on its host."""

    start_seconds: float = Field(
        60.0,
        ge=60,
        le=3600,
        description="Longest that `heimdallr up` takes until everything is ready; past it, it stops and says what was "
        "missing. The first start on a data folder has twice as long. More for large models on a slow disk.",
    )
    ray_port: int = Field(6479, ge=0, le=65535, description="Port of the Ray head (GCS).")
    ray_dashboard_port: int = Field(
        8297, ge=0, le=65535, description="Port kept for Ray's own dashboard, which is not started."
    )
    ray_agent_port: int = Field(
        52397,
        ge=0,
        le=65535,
        description="Port of Ray's agent on this host; behind the firewall, as all of Ray's ports.",
    )
    ray_client_port: int = Field(10397, ge=0, le=65535, description="Port of the Ray client server.")
    ray_metrics_port: int = Field(8397, ge=0, le=65535, description="Port of Ray's metrics export.")
    ray_worker_ports: str = Field(
        "22000-22999", pattern=r"^(\d+-\d+)?$", description="Port range of Ray workers; empty: Ray's own, 10002-19999."
    )
    ray_num_cpus: int = Field(0, ge=0, description="Logical CPUs of the Ray head; 0: enough for all deployments.")
    object_store_mib: int = Field(1024, ge=100, description="Ray's object store on this host.")

    audit_key_file: Path | None = Field(
        None,
        description="File with the key of the audit chain, mode 0600, made by the first start; empty: `audit.key` in "
        "`data_dir`. Keep a copy elsewhere; hosts that share a database share it.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")
    log_file_mib: int = Field(
        32,
        ge=1,
        le=4096,
        description="A log file in `data_dir`/logs that would grow past this makes place for a new one.",
    )
    log_files: int = Field(
        5, ge=1, le=100, description="How many files of each part's log are kept, the one that is written included."
    )

    @field_validator("audit_key_file")
    @classmethod
    def _key_seen_from_everywhere(cls, path: Path | None) -> Path | None:
        return absolute(path)
