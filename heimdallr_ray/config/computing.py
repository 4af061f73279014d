"""What is computed of a study, by which models, on which device."""

from __future__ import annotations

from pathlib import Path
from typing import Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator

from heimdallr_ray.config.part import SettingsPart, absolute

LICENCE_LENGTH: Final = 18
"""TotalSegmentator's own check of a licence number: `has_valid_license` of its config.py counts the characters."""


class ComputingSettings(SettingsPart):
    """Choice of the series, measurements, workers, models."""

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

    @field_validator("series_rules")
    @classmethod
    def _rules_seen_from_everywhere(cls, path: Path | None) -> Path | None:
        return absolute(path)

    @model_validator(mode="after")
    def _computing_is_sound(self) -> Self:
        if len(self.totalsegmentator_licence.get_secret_value()) not in (0, LICENCE_LENGTH):
            raise ValueError(f"totalsegmentator_licence needs {LICENCE_LENGTH} characters")
        if self.renew_seconds * 2 > self.lease_seconds:
            raise ValueError("renew_seconds must be at most half of lease_seconds")
        return self
