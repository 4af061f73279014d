"""What a result is made from, as one digest: equal inputs give an equal result, so nothing has to run for it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from heimdallr_ray.catalog.choosing import SeriesChosen
from heimdallr_ray.config import Settings
from heimdallr_ray.dicom.regions import unmeasured_regions
from heimdallr_ray.dicom.series import Selection, Series
from heimdallr_ray.pipelines.labels import FORM as LABELS_FORM
from heimdallr_ray.segmentation.registry import registry_digest

_FORM = 1
"""Goes into the digest: a change of what it holds makes every older result another one."""


@dataclass(frozen=True)
class Surroundings:
    """What takes part in a result beside the images.

    Attributes:
        build: of the package.
        engine: weights on the disk and settings of the engine, as one text.
        measurements: quantities that the site asks for; empty: all.
        segmentations: further tasks that it asks for.
    """

    build: str
    engine: str
    measurements: Collection[str]
    segmentations: Collection[str]


def engine_text(settings: Settings, weights: Path) -> str:
    """What labels depend on beside the image: the registry as its manifest has it now, and the engine's settings."""
    return "|".join(
        (
            registry_digest(weights),
            settings.profile,
            settings.device,
            settings.segmenter_mode,
            f"{settings.lower_resolution}",
            f"{settings.segmenter_memory_mib}",
            # Whether licensed tasks run; the number itself is a secret.
            f"{bool(settings.totalsegmentator_licence.get_secret_value())}",
        )
    )


def contenders(selection: Selection) -> tuple[Series, ...]:
    """The series whose pixels may still be looked at: the chosen one, who tied with it, who is asked for next."""
    if selection.chosen is None:
        return ()
    named = [
        selection.chosen,
        *(one.series for one in selection.finalists),
        *(one.series for one in selection.fallbacks),
    ]
    return tuple({(str(one.uid), one.part): one for one in named}.values())


def inputs_sha256(
    selection: Selection, choice: SeriesChosen | None, surroundings: Surroundings, *, deskew: bool
) -> str | None:
    """Digest of everything that the result of `selection` will be made from; None where no series was chosen.

    Other series of the study count by what the result says of them: parts of the body that only they show.

    Args:
        selection: as the rules or a person made it, before any pixel is read.
        choice: a person's, with name and reason, which stand in the result.
        surroundings: of the run.
        deskew: whether a tilt is taken out.
    """
    if selection.chosen is None:
        return None
    document = {
        "form": _FORM,
        "surroundings": _surroundings(surroundings),
        "rules": None if selection.rules is None else asdict(selection.rules),
        "choice": None if choice is None else asdict(choice),
        "deskew": deskew,
        "series": [_series(one) for one in contenders(selection)],
        "finalists": [
            [str(one.series.uid), one.series.part, str(one.header_phase.phase)] for one in selection.finalists
        ],
        "converter": selection.fallback_code,
        "next": [[str(one.series.uid), one.series.part, one.code] for one in selection.fallbacks],
        # What lies outside depends on which of them is measured in the end.
        "elsewhere": [
            [[one.region, str(one.series_uid)] for one in unmeasured_regions(replace(selection, chosen=series))]
            for series in contenders(selection)
        ],
    }
    return _digest(document)


def labels_sha256(selection: Selection, surroundings: Surroundings, *, deskew: bool) -> str | None:
    """Digest of everything that decides the labels of the chosen series; None where none was chosen.

    What stands in a result beside the labels (rules, other series, who chose) takes no part: it is made anew each time.

    Args:
        selection: as it stands once the chosen series has become a volume.
        surroundings: of the run.
        deskew: whether a tilt is taken out.
    """
    if selection.chosen is None:
        return None
    document = {
        "form": [_FORM, LABELS_FORM],
        "labels": True,
        "surroundings": _surroundings(surroundings),
        "deskew": deskew,
        "series": _series(selection.chosen),
        "converter": selection.fallback_code,
    }
    return _digest(document)


def _surroundings(surroundings: Surroundings) -> dict[str, Any]:
    return {
        "build": surroundings.build,
        "engine": surroundings.engine,
        "measurements": sorted(surroundings.measurements),
        "segmentations": sorted(surroundings.segmentations),
    }


def _digest(document: dict[str, Any]) -> str:
    text = json.dumps(document, sort_keys=True, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _series(series: Series) -> dict[str, Any]:
    frames: Sequence[tuple[int, ...]] = series.frame_sets or [()] * len(series.instances)
    images = [
        [str(one.header.sop_uid or ""), one.content_sha256 or one.locator, list(numbers)]
        for one, numbers in zip(series.instances, frames, strict=True)
    ]
    return {
        "uid": str(series.uid),
        "part": series.part,
        "parts": series.parts,
        "phase": series.phase,
        "phases": series.phases,
        "kind": str(series.kind),
        "images": images,
    }
