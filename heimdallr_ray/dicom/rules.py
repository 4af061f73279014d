"""The rules of the selection as data: one TOML file, checked as a whole when it is read, known by its digest.

The package's own is series_rules.toml beside this module; a site may give another. Code holds the evaluators only
(`suitability.py`, `ranking.py`), and refuses a file that names one it does not have.
"""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, cast

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from heimdallr_ray.dicom.kernels import KernelRow, Sharpness
from heimdallr_ray.dicom.phase import ContrastWords, Phase
from heimdallr_ray.errors import BadSetting

Purpose = Literal["volume", "lung", "bone"]

MAX_FILE_BYTES: Final = 1 << 20
"""The package's own file takes 10 kB."""

REFUSALS: Final = (
    "not_volume_sop",
    "wrong_modality",
    "localizer",
    "colour",
    "mosaic",
    "multiframe_without_groups",
    "not_hounsfield",
    "projection",
    "truncated",
    "too_few_slices",
    "too_thick",
    "sharp_kernel",
)
"""Every refusal that there is an evaluator for."""

INDISPENSABLE: Final = frozenset(
    {
        "not_volume_sop",
        "wrong_modality",
        "localizer",
        "colour",
        "mosaic",
        "multiframe_without_groups",
        "not_hounsfield",
        "truncated",
    }
)
"""What no site may leave out and no person overrule: without these there is no volume, or none whose values are what
they are taken for."""

RANKS: Final = (
    "penalty",
    "coverage",
    "kernel",
    "thickness",
    "phase",
    "time_point",
    "energy",
    "reconstructed",
    "slices",
    "series_number",
)
"""Every rank that there is an evaluator for."""

NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Words = tuple[Annotated[str, Field(min_length=1, max_length=64)], ...]
"""A list in the file, or the name of one of its table `shared`."""


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Penalties(_Table):
    """What speaks against a series that can nevertheless be measured; the sum is its rank `penalty`."""

    axial_min: Annotated[float, Field(ge=0, le=1)]
    non_axial: NonNegative
    small_field_mm: NonNegative
    small_field: NonNegative
    small_field_allowed: Words
    types: Mapping[str, NonNegative]
    unknown_type: NonNegative
    doubtful_word: NonNegative
    known_types: Words
    flags: Mapping[str, NonNegative]
    diffusion: NonNegative


class Profile(_Table):
    """The rules for one modality and purpose."""

    modality: Literal["CT", "MR"]
    refuse: tuple[str, ...]
    order: tuple[str, ...]
    min_slices: Annotated[int, Field(ge=2, le=1000)]
    max_thickness_mm: Annotated[float, Field(gt=0, le=50)]
    ideal_thickness_mm: tuple[NonNegative, NonNegative]
    noisy_below_mm: NonNegative
    coverage_share: Annotated[float, Field(gt=0, le=1)]
    coverage_slack_mm: NonNegative
    rescale_types: Words
    projection_types: Words
    map_types: Words
    projection_words: Words
    doubtful_words: Words
    phases: tuple[Phase, ...]
    preferred_kvp: NonNegative
    mixed_energy_types: Words
    kernel_rank: Mapping[Sharpness, NonNegative]
    penalties: Penalties

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name, given, known in (("refuse", self.refuse, REFUSALS), ("order", self.order, RANKS)):
            unknown = sorted(set(given) - set(known))
            if unknown or len(set(given)) != len(given):
                raise ValueError(f"{name}: unknown or repeated: {', '.join(unknown) or 'a name twice'}")
        if self.modality == "CT" and not self.rescale_types:
            raise ValueError("rescale_types: a CT needs those that mean Hounsfield units")
        # Values of MR are in no unit.
        needed = INDISPENSABLE if self.modality == "CT" else INDISPENSABLE - {"not_hounsfield"}
        lacking = sorted(needed - set(self.refuse))
        if lacking:
            raise ValueError(f"refuse: {', '.join(lacking)} cannot be left out")
        if set(self.kernel_rank) != set(Sharpness):
            raise ValueError("kernel_rank: needs soft, medium, sharp and unknown")
        if len(set(self.phases)) != len(self.phases):
            raise ValueError("phases: a name twice")
        if self.ideal_thickness_mm[0] > self.ideal_thickness_mm[1]:
            raise ValueError("ideal_thickness_mm: the lower bound comes first")
        return self


def _resolved(table: object, lists: Mapping[str, Any], model: type[_Table], where: str) -> object:
    """`table` of the file with lists in place of the names of shared ones.

    Raises:
        ValueError: there is no list of that name.
    """
    if not isinstance(table, dict):
        return table
    found = cast("dict[str, Any]", table).copy()
    for key, field in model.model_fields.items():
        value = found.get(key)
        if field.annotation == Words and isinstance(value, str):
            if value not in lists:
                raise ValueError(f"{where}.{key}: no list {value} in the table `shared`")
            found[key] = lists[value]
        elif field.annotation is Penalties:
            found[key] = _resolved(value, lists, Penalties, f"{where}.{key}")
    return found


class RuleFile(_Table):
    """The file as it is written."""

    rules_id: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
    version: Annotated[int, Field(ge=1)]
    purposes: Mapping[Purpose, Annotated[tuple[str, ...], Field(min_length=1)]]
    shared: Mapping[str, Words] = Field(default_factory=dict)
    profiles: Mapping[str, Profile]
    contrast: ContrastWords
    kernels: tuple[KernelRow, ...]

    @model_validator(mode="before")
    @classmethod
    def _with_shared(cls, given: dict[str, Any]) -> dict[str, Any]:
        shared, profiles = given.get("shared", {}), given.get("profiles")
        if not isinstance(shared, dict) or not isinstance(profiles, dict):
            return given
        lists = cast("dict[str, Any]", shared)
        named = cast("dict[str, Any]", profiles)
        return {**given, "profiles": {name: _resolved(table, lists, Profile, name) for name, table in named.items()}}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "volume" not in self.purposes:
            raise ValueError("purposes: `volume` is missing")
        for purpose, names in self.purposes.items():
            missing = [name for name in names if name not in self.profiles]
            if missing:
                raise ValueError(f"purposes.{purpose}: no profile {', '.join(missing)}")
            modalities = [self.profiles[name].modality for name in names]
            if len(set(modalities)) != len(modalities):
                raise ValueError(f"purposes.{purpose}: two profiles for one modality")
        return self


@dataclass(frozen=True)
class RulesRef:
    """Which rules decided: enough to find them again."""

    rules_id: str
    version: int
    sha256: str
    purpose: str


@dataclass(frozen=True)
class SeriesRules:
    """A checked rule file and the digest of its bytes."""

    file: RuleFile
    sha256: str

    def profiles(self, purpose: Purpose) -> tuple[Profile, ...]:
        """The profiles that may serve `purpose`, the preferred modality first.

        Raises:
            BadSetting: the file does not know this purpose.
        """
        names = self.file.purposes.get(purpose)
        if names is None:
            raise BadSetting(f"series rules {self.file.rules_id}: no purpose {purpose}")
        return tuple(self.file.profiles[name] for name in names)

    def ref(self, purpose: Purpose) -> RulesRef:
        """Id, version and digest, for the results."""
        return RulesRef(self.file.rules_id, self.file.version, self.sha256, purpose)


def parse_rules(content: bytes, name: str) -> SeriesRules:
    """The rules in a TOML file.

    Raises:
        BadSetting: it is no TOML, or a key, a name or a number in it is wrong; says which.
    """
    try:
        file = RuleFile.model_validate(tomllib.loads(content.decode("utf-8")))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadSetting(f"series rules {name}: {error}") from error
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:10])
        raise BadSetting(f"series rules {name}: {problems}") from error
    return SeriesRules(file, hashlib.sha256(content).hexdigest())


@cache
def default_rules() -> SeriesRules:
    """The package's own rules."""
    name = "series_rules.toml"
    return parse_rules((resources.files("heimdallr_ray.dicom") / name).read_bytes(), name)


def load_rules(path: Path | None) -> SeriesRules:
    """The rules in the site's file; the package's own where there is none.

    Raises:
        BadSetting: the file cannot be read, is too large, or is not valid.
    """
    if path is None:
        return default_rules()
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise BadSetting(f"series rules {path.name}: {error.strerror or error}") from error
    if len(content) > MAX_FILE_BYTES:
        raise BadSetting(f"series rules {path.name}: larger than {MAX_FILE_BYTES} bytes")
    return parse_rules(content, path.name)
