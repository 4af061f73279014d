"""One frozen Settings object: heimdallr.toml, then HEIMDALLR_* variables. Built in cli.py and passed down.

Unknown keys, malformed files and weak secrets stop the start.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, cast

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.sources import CompletionPolicy, CompletionRules, Sources

IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network
ENV_PREFIX = "HEIMDALLR_"
NOT_SETTINGS = frozenset({"HEIMDALLR_TEST_DATA", "HEIMDALLR_CONFIG"})
"""Variables with our prefix that are not settings: the tests' data folder and the path of heimdallr.toml."""
MIN_SECRET_LENGTH = 16
LICENCE_LENGTH = 18
"""TotalSegmentator's own check of a licence number: `has_valid_license` of its config.py counts the characters."""


def is_loopback(host: str) -> bool:
    """True where `host` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _let_everybody_in(networks: Iterable[IPNetwork]) -> bool:
    """True where `networks` together hold all of IPv4 or all of IPv6."""
    found = list(networks)
    v4 = [network for network in found if isinstance(network, ipaddress.IPv4Network)]
    v6 = [network for network in found if isinstance(network, ipaddress.IPv6Network)]
    whole = [*ipaddress.collapse_addresses(v4), *ipaddress.collapse_addresses(v6)]
    return any(network.prefixlen == 0 for network in whole)


@dataclass(frozen=True)
class Peer:
    """Where an application entity listens."""

    ae_title: str
    host: str
    port: int
    tls: bool = False

    @classmethod
    def parse(cls, text: str) -> Peer:
        """The peer of `AE=host:port` or `AE=tls:host:port`; an IPv6 address stands in brackets.

        Raises:
            ValueError: not of this form, no AE title (PS3.5 table 6.2-1), or no port.
        """
        title, _, place = text.rpartition("=")
        place = place.strip()
        tls = place.startswith("tls:") and ":" in place[4:]
        host, _, port = place.removeprefix("tls:" if tls else "").rpartition(":")
        title, host = title.strip(), host.strip()
        if host.startswith("[") and host.endswith("]"):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif ":" in host:
            raise ValueError("an IPv6 address stands in brackets: AE=[::1]:104")
        if not 1 <= len(title) <= 16 or not title.isascii() or not title.isprintable() or "\\" in title:
            raise ValueError("is not AE=host:port with an AE title of 1 to 16 characters")
        if not re.fullmatch(r"[A-Za-z0-9._:-]{1,253}", host):
            raise ValueError("is not AE=host:port with a host name or an address")
        if not re.fullmatch(r"[0-9]{1,5}", port.strip()) or not 1 <= int(port) <= 65535:
            raise ValueError("is not AE=host:port with a port from 1 to 65535")
        return cls(title, host, int(port), tls)


class Settings(BaseSettings):
    """Everything that can be set. Each field is documented in docs/settings.md (a test compares)."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

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

    ae_title: str = Field("HEIMDALLR", min_length=1, max_length=16, description="Our application entity title.")
    dicom_host: str = Field("127.0.0.1", description="Address that the DICOM listener binds to.")
    dicom_port: int = Field(11112, ge=0, le=65535, description="Port of the DICOM listener.")
    allowed_calling_aes: tuple[str, ...] = Field((), description="Calling AE titles that may associate; empty: any.")
    allowed_addresses: tuple[str, ...] = Field(
        (), description="Networks (CIDR) that may associate; empty: any. One that holds every address is no rule."
    )
    max_associations: int = Field(32, ge=1, le=1000, description="Associations open at once.")
    max_instance_mib: int = Field(512, ge=1, description="Largest single DICOM object.")
    idle_seconds: float = Field(
        60.0,
        gt=0,
        description="A study is closed after this long without a new image, where nothing is known of how its sender "
        "ended. Never while an association is open that has sent to it.",
    )
    settle_after_release_seconds: float = Field(
        15.0,
        gt=0,
        description="The same after the last association (or upload) that sent to it has ended properly; never more "
        "than `idle_seconds`.",
    )
    settle_after_abort_seconds: float = Field(
        300.0,
        gt=0,
        description="The same after that association was aborted or lost; never less than `idle_seconds`.",
    )
    max_open_seconds: float = Field(
        7200.0,
        gt=0,
        description="A study is ended so long after its first image, also while an association is still sending to it.",
    )
    at_max_open: Literal["close", "fail"] = Field(
        "close",
        description="What becomes of it then. `close`: what is there is analysed, and its page says that it was cut "
        "off. `fail`: it is not analysed until a person asks for it or more images come.",
    )
    speculate: bool = Field(
        False, description="While a study settles and no other work waits, labels of a series at rest are made ahead."
    )
    sources: Sources = Field(
        (),
        description="Other rules for single senders, the first that fits counts: `[[sources]]` tables in the file, "
        "JSON in the variable; see operations/completion.md.",
    )
    scan_seconds: float = Field(1.0, gt=0, le=60, description="How often the listener looks for idle studies.")
    commitment_peers: tuple[str, ...] = Field(
        (),
        description="Who may ask for storage commitment, and where the report goes: `AE=host:port` each, or "
        "`AE=tls:host:port` (IPv6 in brackets). An AE title that is not named is refused with status 0x0124.",
    )
    commitment_days: float = Field(
        7.0,
        gt=0,
        le=60,
        description="A commitment report that could not be delivered for this long is given up.",
    )
    min_free_mib: int = Field(1024, ge=0, description="Intake is refused while less than this is free in `data_dir`.")
    disk_warn_percent: float = Field(
        85.0, gt=0, le=100, description="From this share of the disk of `data_dir` on (as `df` shows it) we warn."
    )
    disk_refuse_percent: float = Field(
        92.0,
        gt=0,
        le=100,
        description="From this share on images are refused (0xA700, HTTP 507) until there is room again.",
    )
    durability: Literal["instance", "study"] = Field(
        "instance",
        description="When Success is answered. `instance`: the image has reached the disk. `study`: it has been "
        "written, and reaches the disk before its study is closed; faster, and a power cut (no other failure) may take "
        "images that were acknowledged, which is then told.",
    )
    dicom_backend: Literal["wire", "pynetdicom"] = Field(
        "wire",
        description="What receives C-STORE: `wire` writes from the socket to the disk; `pynetdicom` is the slower "
        "reference, to compare with.",
    )
    listener_processes: int = Field(
        1,
        ge=0,
        le=16,
        description="Processes that receive on `dicom_port` (backend `wire`); more for several fast senders. 0: the "
        "listener receives itself, in 70 MiB less memory and more slowly while it also writes to the catalog.",
    )
    max_associations_per_address: int = Field(
        16, ge=1, le=1000, description="Connections that one address may have open at once."
    )
    dicom_tls: Literal["off", "on"] = Field(
        "off", description="`on`: `dicom_port` speaks TLS 1.2 or 1.3 only, and every peer must show a certificate."
    )
    dicom_tls_certificate: Path | None = Field(None, description="Our certificate with its chain (PEM).")
    dicom_tls_key: Path | None = Field(None, description="The private key of our certificate (PEM, no passphrase).")
    dicom_tls_ca: Path | None = Field(
        None, description="Certificates of the authorities that may have signed a peer's certificate (PEM)."
    )

    series_rules: Path | None = Field(
        None, description="The site's own file of rules for the choice of series (TOML); empty: the package's own."
    )
    deskew: bool = Field(
        False,
        description="A tilt of the gantry is taken out of the images before models run, and labels are brought back to "
        "the slices; a person may decide otherwise for one study.",
    )
    measurements: tuple[str, ...] = Field(
        (),
        description="Measurements that are made, by their ids; only the models that these need are run. Empty: all.",
    )
    segmentations: tuple[str, ...] = Field(
        (),
        description="Further TotalSegmentator tasks whose labels are made and kept for each image that they read, by "
        "the names of `heimdallr models list`; a study goes on without one that cannot run, and says why.",
    )
    max_parallel_cases: int = Field(
        1,
        ge=1,
        le=64,
        description="Studies that one consumer replica works on at once. 2: while one is on the device, another is "
        "prepared or measured.",
    )
    decoder_processes: int = Field(
        0,
        ge=0,
        le=16,
        description="Child processes in which one consumer replica decodes compressed images; 0: as many as cores, "
        "at most 4.",
    )
    lease_seconds: float = Field(
        20.0, gt=0, description="How long a claimed job belongs to its worker without renewal."
    )
    renew_seconds: float = Field(5.0, gt=0, description="How often a worker renews its lease.")
    max_attempts: int = Field(3, ge=1, le=20, description="Attempts before a job is set aside.")

    weights_dir: Path | None = Field(
        None,
        description="Folder of TotalSegmentator models; empty: demo weights in `demo`, `data_dir`/weights in `site`.",
    )
    totalsegmentator_licence: SecretStr = Field(
        SecretStr(""),
        description=f"The site's own TotalSegmentator licence number, {LICENCE_LENGTH} characters; for licensed tasks.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="Where the models run.")
    lower_resolution: bool = Field(
        False,
        description="A model at 1.5 mm that does not fit into memory in any way, or not into the memory budget, gives "
        "place to the one at 3 mm, which every number then names; otherwise the study fails with oom, or goes on "
        "without. All of today's measurements are allowed at 3 mm, so none is left out by it.",
    )
    segmenter_mode: Literal["exact", "turbo"] = Field(
        "exact",
        description="`exact`: TotalSegmentator's labels, bit for bit. `turbo`: faster ways of running a model where "
        "they save time and leave its labels as they are on a phantom (Dice 0.999 each); every number names the mode.",
    )
    segmenter_memory_mib: int = Field(
        0,
        ge=0,
        le=1 << 24,
        description="Memory that the models of one Segmenter replica may take on its device, in MiB: their weights and "
        "the activations of one tile. Models beyond it take turns; one that does not fit alone is refused. 0: all.",
    )
    torch_threads: int = Field(0, ge=0, le=256, description="CPU threads of one Segmenter replica; 0: all cores.")

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
        "22000-22999", pattern=r"^(\d+-\d+)?$", description="Port range of Ray workers; empty: any free port."
    )
    ray_num_cpus: int = Field(0, ge=0, description="Logical CPUs of the Ray head; 0: enough for all deployments.")
    object_store_mib: int = Field(1024, ge=100, description="Ray's object store on this host.")

    audit_key_file: Path | None = Field(
        None,
        description="File with the key of the audit chain, mode 0600, made by the first start; empty: `audit.key` in "
        "`data_dir`. Keep a copy elsewhere; hosts that share a database share it.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Least level that is logged.")

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

    @field_validator("allowed_calling_aes", "allowed_addresses")
    @classmethod
    def _named(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        """An empty part of a list names nobody and is dropped."""
        return tuple(part.strip() for part in parts if part.strip())

    @field_validator("commitment_peers")
    @classmethod
    def _peers_that_can_be_called(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        named = tuple(part.strip() for part in parts if part.strip())
        titles: set[str] = set()
        for part in named:
            try:
                peer = Peer.parse(part)
            except ValueError as error:
                raise ValueError(f"{part}: {error}") from error
            if peer.ae_title in titles:
                raise ValueError(f"{peer.ae_title} is named twice")
            titles.add(peer.ae_title)
        return named

    @field_validator("series_rules", "audit_key_file")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        """The replicas work in other folders than the one in which the stack is started."""
        return None if path is None else path.expanduser().absolute()

    @model_validator(mode="after")
    def _secure(self) -> Self:
        for name in ("api_token", "upload_token"):
            secret = cast(SecretStr, getattr(self, name)).get_secret_value()
            if secret and len(secret) < MIN_SECRET_LENGTH:
                raise ValueError(f"{name} needs at least {MIN_SECRET_LENGTH} characters")
        if not is_loopback(self.server_host) and not self.api_token.get_secret_value():
            raise ValueError("server_host is not loopback: set api_token first")
        if len(self.totalsegmentator_licence.get_secret_value()) not in (0, LICENCE_LENGTH):
            raise ValueError(f"totalsegmentator_licence needs {LICENCE_LENGTH} characters")
        networks = [ipaddress.ip_network(text) for text in self.allowed_addresses]
        some_addresses = bool(networks) and not _let_everybody_in(networks)
        if not is_loopback(self.dicom_host) and not (self.allowed_calling_aes or some_addresses):
            raise ValueError(
                "dicom_host is not loopback: set allowed_calling_aes or allowed_addresses first "
                "(a network that holds every address is no rule)"
            )
        if self.disk_warn_percent > self.disk_refuse_percent:
            raise ValueError("disk_warn_percent must not be above disk_refuse_percent")
        if self.dicom_tls == "on":
            for name in ("dicom_tls_certificate", "dicom_tls_key", "dicom_tls_ca"):
                if getattr(self, name) is None:
                    raise ValueError(f"dicom_tls is on: set {name}")
        if self.dicom_tls_ca is None and any(peer.tls for peer in self.peers.values()):
            raise ValueError("commitment_peers: a peer wants TLS: set dicom_tls_ca")
        if self.dicom_backend == "pynetdicom" and self.dicom_tls == "on":
            raise ValueError("dicom_backend pynetdicom has no TLS")
        if self.renew_seconds * 2 > self.lease_seconds:
            raise ValueError("renew_seconds must be at most half of lease_seconds")
        return self

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Those of `commitment_peers`, by AE title."""
        found = [Peer.parse(part) for part in self.commitment_peers]
        return {peer.ae_title: peer for peer in found}

    @property
    def resolved_database_url(self) -> str:
        """The database to use."""
        return self.database_url or f"sqlite:///{self.data_dir / 'catalog.sqlite'}"

    @property
    def resolved_audit_key_file(self) -> Path:
        """Where the key of the audit chain lies."""
        return self.audit_key_file or self.data_dir / "audit.key"

    @property
    def completion(self) -> CompletionPolicy:
        """When a study is complete, by sender."""
        site = CompletionRules(
            idle_s=self.idle_seconds,
            after_release_s=self.settle_after_release_seconds,
            after_abort_s=self.settle_after_abort_seconds,
            max_open_s=self.max_open_seconds,
            at_max_open=self.at_max_open,
            speculate=self.speculate,
        )
        return CompletionPolicy(site.bounded(), self.sources)

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
    def resolved_weights_dir(self) -> Path | None:
        """The folder of the models; None: the packaged demo weights."""
        if self.weights_dir is not None:
            return self.weights_dir
        return None if self.profile == "demo" else self.data_dir / "weights"

    @property
    def log_dir(self) -> Path:
        """Where the supervisor and its children write their logs."""
        return self.data_dir / "logs"


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
