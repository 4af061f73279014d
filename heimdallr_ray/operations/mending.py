"""How weights that are missing or changed are put right: one command, for the very models and the registry at hand."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from shlex import quote
from typing import Any, Final

from heimdallr_ray.config import Settings
from heimdallr_ray.errors import WeightsMissing, WeightsTampered
from heimdallr_ray.pipelines.demand import demand_of
from heimdallr_ray.segmentation.archives import archive_named, fetch_command
from heimdallr_ray.segmentation.demo import weights_dir
from heimdallr_ray.segmentation.registry import command_for, folder_of, missing_needed
from heimdallr_ray.segmentation.weights import (
    MANIFEST_NAME,
    PINS_KEY,
    WeightsSet,
    faults,
    is_damaged,
    read_document,
    read_manifest,
    registry_to_fill,
)

WITHOUT_NETWORK: Final = "without a network `heimdallr models import`: docs/weights.md"
_DEMO: Final = ". To try it with the demo's weights: --profile demo (make up PROFILE=demo)"


def hint(settings: Settings, folder: Path | None = None, *, hashed: bool = True) -> str:
    """What to do about a registry that was refused; the packaged weights of the demo are never fetched.

    Args:
        settings: of the site.
        folder: the registry; None: that of the settings.
        hashed: changed bytes are looked for too, which reads every model; else absent files and other sizes only.

    Raises:
        WeightsTampered: the manifest was changed while it was looked at.
    """
    place = folder or settings.resolved_weights_dir or weights_dir()
    if registry_to_fill(place) is None:
        return _packaged(place, hashed=hashed)
    if is_damaged(place):
        return (
            f"where you trust what lies there: heimdallr models manifest {quote(str(place))}; "
            "else remove its manifest.json and fetch or import the models anew: docs/weights.md"
        )
    weights = read_manifest(place) if (place / MANIFEST_NAME).exists() else None
    changed = changed_models(weights, hashed=hashed) if weights is not None else ()
    if weights is not None and changed:
        return "; ".join(_anew(weights, changed))
    absent = missing_needed(weights, demand_of(settings.measurements))
    if not absent:
        return f"fetch or import that model anew, with --replace and --into {quote(str(place))}: docs/weights.md"
    return f"{command_for(absent, place)} brings TotalSegmentator's; {WITHOUT_NETWORK}" + (
        "" if settings.profile == "demo" else _DEMO
    )


def changed_models(weights: WeightsSet, *, hashed: bool = True) -> tuple[str, ...]:
    """Folders of the data sets of which a listed file is gone or has other bytes than its entry says."""
    return tuple(dict.fromkeys(folder_of(relative) for relative, _ in faults(weights, hashed=hashed)))


def _packaged(place: Path, *, hashed: bool) -> str:
    # What pip copied into an environment inside a checkout is not the checkout's.
    own = "site-packages" not in place.parts
    root = next((parent for parent in place.parents if own and (parent / ".git").exists()), None)
    what = "the demo's weights are a part of the package and are not fetched: "
    if root is None:
        return f"{what}install it anew (pip install --force-reinstall --no-deps, with the file it came from)"
    changed = () if is_damaged(place) or not (place / MANIFEST_NAME).exists() else changed_models(
        read_manifest(place), hashed=hashed
    )  # fmt: skip
    paths = " ".join(quote(str((place / name).relative_to(root))) for name in changed or (".",))
    return f"{what}git -C {quote(str(root))} checkout -- {paths}"


def _anew(weights: WeightsSet, changed: Iterable[str]) -> list[str]:
    """The commands that bring `changed`: from the package what is its own, from TotalSegmentator what is theirs."""
    pins: dict[str, Any] = read_document(weights.folder)[PINS_KEY]
    try:
        packaged = read_manifest(weights_dir())
    except (WeightsMissing, WeightsTampered):
        packaged = None  # the package's own copy is no help
    copied: list[str] = []
    fetched: list[str] = []
    unknown: list[str] = []
    for name in changed:
        if packaged is not None and _entries(packaged, name) == _entries(weights, name):
            copied.append(name)
        else:
            (fetched if archive_named(name) else unknown).append(name)
    target = quote(str(weights.folder))
    found: list[str] = []
    if copied:
        sources = " ".join(quote(str(weights_dir() / name)) for name in copied)
        found.append(f"the demo's weights are copied from the package: cp -r {sources} {target}/")
    if fetched:
        # Bytes that no import has pinned may differ from upstream's own; then it has to be said that they give way.
        replace = "" if all(name in pins for name in fetched) else " --replace"
        found.append(f"{fetch_command(fetched, weights.folder)}{replace} puts it right; {WITHOUT_NETWORK}")
    if unknown:
        found.append(
            f"put {', '.join(unknown)} back as it was, or, where you trust what lies there: "
            f"heimdallr models manifest {target}, which writes {MANIFEST_NAME} anew"
        )
    return found


def _entries(weights: WeightsSet, folder: str) -> dict[str, object]:
    return {name: entry for name, entry in weights.files.items() if folder_of(name) == folder}
