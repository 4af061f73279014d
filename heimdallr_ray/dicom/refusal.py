"""A series that another reader was to turn into a volume, and could not: the next one, or none. Pure."""

from __future__ import annotations

from dataclasses import replace

from heimdallr_ray.dicom.decisions import Line, Selection, SeriesDecision
from heimdallr_ray.dicom.wording import of_fallback


def after_refusal(selection: Selection, code: str, detail: str) -> Selection:
    """The selection after another reader refused the chosen series: its next one, or none, each with its reason.

    Args:
        selection: with `fallback_code`.
        code: why the chosen series is no volume after all.
        detail: the same in words.
    """
    refused, following = selection.chosen, selection.fallbacks[0] if selection.fallbacks else None
    if refused is None or not selection.fallback_code:
        return selection
    made: list[SeriesDecision] = []
    for one in selection.decisions:
        decision = one
        if (one.series_uid, one.part) == (refused.uid, refused.part):
            line = Line("converter", f"{code}: {detail}", "refused")
            decision = replace(
                one,
                accepted=False,
                code=code,
                reason=detail,
                lines=(*one.lines, line),
                can_be_chosen=False,
                chosen_by="",
            )
        elif following is not None and (one.series_uid, one.part) == (following.series.uid, following.series.part):
            by = "rules" if selection.override is None else "person"
            reason = of_fallback(following.reason, selection.override)
            decision = replace(one, accepted=True, code="chosen", reason=reason, chosen_by=by)
        made.append(decision)
    return replace(
        selection,
        chosen=None if following is None else following.series,
        decisions=tuple(made),
        fallback_code="" if following is None else following.code,
        fallbacks=selection.fallbacks[1:],
    )
