"""When a study from a given sender counts as complete: the site's rule, and rules for single sources."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

AtMaxOpen = Literal["close", "fail"]
DoorName = Literal["dicom", "upload", "stow"]
Seconds = Annotated[float, Field(gt=0, le=7 * 86400, allow_inf_nan=False)]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RequiredSeries(_Table):
    """A series that a study of this source has once it is complete."""

    description: str = Field(default="*", min_length=1, max_length=64)
    """Series Description (0008,103E), in any case; `*` and `?` stand for what they do in file names."""
    modality: str = Field(default="", max_length=16)
    """Modality (0008,0060); empty: any."""
    min_images: int = Field(default=1, ge=1, le=100_000)

    def is_met_by(self, modality: str, description: str, n_images: int) -> bool:
        """True where a series is this one and has enough images."""
        return (
            n_images >= self.min_images
            and self.modality.upper() in ("", modality.upper())
            and fnmatchcase(description.lower(), self.description.lower())
        )


class SourceRule(_Table):
    """One `[[sources]]` table: whom it is about, and what is otherwise there than for everybody.

    All of the criteria that are given must hold; of one criterion any value. The first rule that fits counts.
    """

    name: str = Field(min_length=1, max_length=32)
    calling_aes: tuple[str, ...] = ()
    addresses: tuple[str, ...] = ()
    """Networks (CIDR)."""
    doors: tuple[DoorName, ...] = ()
    idle_seconds: Seconds | None = None
    settle_after_release_seconds: Seconds | None = None
    settle_after_abort_seconds: Seconds | None = None
    max_open_seconds: Seconds | None = None
    speculate: bool | None = None
    at_max_open: AtMaxOpen | None = None
    expected_instances: int | None = Field(default=None, ge=1, le=1_000_000)
    required_series: tuple[RequiredSeries, ...] = ()

    @field_validator("addresses")
    @classmethod
    def _networks(cls, addresses: tuple[str, ...]) -> tuple[str, ...]:
        for text in addresses:
            ipaddress.ip_network(text)
        return addresses

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if not (self.calling_aes or self.addresses or self.doors):
            raise ValueError(f"source {self.name} names nobody: give calling_aes, addresses or doors")
        return self

    def fits(self, calling_ae: str | None, address: str | None, door: str | None) -> bool:
        """True where the rule is about this sender."""
        return (
            (not self.calling_aes or (calling_ae or "").strip() in self.calling_aes)
            and (not self.addresses or _within(address, self.addresses))
            and (not self.doors or door in self.doors)
        )


def _tables(value: object) -> object:
    """The tables of a variable, which holds them as JSON."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise ValueError("is no JSON list of tables") from error


def _told_apart(rules: tuple[SourceRule, ...]) -> tuple[SourceRule, ...]:
    names = [rule.name for rule in rules]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"two sources are called {twice}")
    return rules


Sources = Annotated[tuple[SourceRule, ...], BeforeValidator(_tables), AfterValidator(_told_apart)]
"""The `[[sources]]` tables of a file, or the JSON of a variable."""


@dataclass(frozen=True)
class CompletionRules:
    """When a study is complete. Times in seconds; `after_release_s` <= `idle_s` <= `after_abort_s`."""

    idle_s: float
    after_release_s: float
    after_abort_s: float
    max_open_s: float
    at_max_open: AtMaxOpen = "close"
    expected_instances: int | None = None
    required_series: tuple[RequiredSeries, ...] = ()
    speculate: bool = False
    """Labels of a series that is quiet are made while its study settles."""
    source: str = ""
    """Name of the rule; empty: the site's own."""

    def hurried(self) -> CompletionRules:
        """These rules where nothing more can come: every wait is the one after a release."""
        return replace(self, idle_s=self.after_release_s, after_abort_s=self.after_release_s)

    def bounded(self) -> CompletionRules:
        """A clean release never makes the wait longer than without a word of the sender, an abort never shorter."""
        return replace(
            self,
            after_release_s=min(self.after_release_s, self.idle_s),
            after_abort_s=max(self.after_abort_s, self.idle_s),
        )


@dataclass(frozen=True)
class CompletionPolicy:
    """The site's rule and those for single sources, in the order in which they are asked."""

    site: CompletionRules
    sources: tuple[SourceRule, ...] = ()

    def of(self, calling_ae: str | None, address: str | None, door: str | None) -> CompletionRules:
        """The rules for studies of this sender."""
        rule = next((one for one in self.sources if one.fits(calling_ae, address, door)), None)
        return self.site.bounded() if rule is None else self.rules_of(rule)

    @property
    def speculates(self) -> bool:
        """True where labels are made ahead for any sender."""
        return self.site.speculate or any(rule.speculate for rule in self.sources)

    def rules_of(self, rule: SourceRule) -> CompletionRules:
        """What `rule` says, and the site's word where it says nothing."""
        return _overlaid(self.site, rule).bounded()


def _overlaid(site: CompletionRules, rule: SourceRule) -> CompletionRules:
    return CompletionRules(
        idle_s=rule.idle_seconds or site.idle_s,
        after_release_s=rule.settle_after_release_seconds or site.after_release_s,
        after_abort_s=rule.settle_after_abort_seconds or site.after_abort_s,
        max_open_s=rule.max_open_seconds or site.max_open_s,
        at_max_open=rule.at_max_open or site.at_max_open,
        expected_instances=rule.expected_instances,
        required_series=rule.required_series,
        speculate=site.speculate if rule.speculate is None else rule.speculate,
        source=rule.name,
    )


def _within(address: str | None, networks: Sequence[str]) -> bool:
    try:
        found = ipaddress.ip_address((address or "").removeprefix("::ffff:"))
    except ValueError:
        return False
    return any(found in ipaddress.ip_network(text) for text in networks)
