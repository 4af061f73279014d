"""Words for a choice that a person made, or that rests on another reader."""

from __future__ import annotations

from heimdallr_ray.dicom.decisions import Override


def of_person(described: str, refused: tuple[str, str] | None, override: Override | None) -> str:
    """What the reason says of a series that is measured: who chose it and why, and despite which refusal."""
    if override is None:
        return described
    why = f" ({override.reason})" if override.reason else ""
    despite = f", although {refused[0]}: {refused[1]}" if refused else ""
    return f"chosen by a person: {override.chosen_by or 'not named'}{why}{despite}; {described}"


def of_fallback(refusal: str, override: Override | None) -> str:
    """The same of a series that only the converter may turn into a volume."""
    return of_person(f"only the converter may be able to read it: {refusal}", None, override)
