"""The DICOM listener: who may send, when a study is complete, how safe an image is when it is acknowledged."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from heimdallr_ray.config.network import Peer, is_loopback, let_everybody_in
from heimdallr_ray.config.part import SettingsPart
from heimdallr_ray.sources import CompletionPolicy, CompletionRules, Sources


class IntakeSettings(SettingsPart):
    """Listener, completion, commitment, disk, TLS."""

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
        "images that were acknowledged. What was in the catalog is then told; of images of the last second nothing may "
        "be left that could tell.",
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

    @field_validator("allowed_calling_aes", "allowed_addresses")
    @classmethod
    def _named(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        """An empty part of a list names nobody and is dropped."""
        return tuple(part.strip() for part in parts if part.strip())

    @field_validator("allowed_addresses")
    @classmethod
    def _networks(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        for part in parts:
            ipaddress.ip_network(part)
        return parts

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

    @model_validator(mode="after")
    def _intake_is_secure(self) -> Self:
        networks = [ipaddress.ip_network(text) for text in self.allowed_addresses]
        some_addresses = bool(networks) and not let_everybody_in(networks)
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
        return self

    @property
    def peers(self) -> Mapping[str, Peer]:
        """Those of `commitment_peers`, by AE title."""
        found = [Peer.parse(part) for part in self.commitment_peers]
        return {peer.ae_title: peer for peer in found}

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
