"""Every code that a reader can meet has its sentence, and no sentence is left of a code that is gone."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import heimdallr_ray
from heimdallr_ray.catalog.completeness import TRANSFER_INCOMPLETE, CloseCode
from heimdallr_ray.catalog.conflicts import SOP_UID_CONFLICT
from heimdallr_ray.catalog.results import LATE_IMAGES_UNCHANGED
from heimdallr_ray.metrics.axes import SIDES
from heimdallr_ray.metrics.result import Status
from heimdallr_ray.queue.lease import ATTEMPTS_EXHAUSTED, WORKER_LOST_REPEATEDLY
from heimdallr_ray.reasons import REASONS, SENTENCES, Place
from heimdallr_ray.segmentation.planner import LeftOutCode

PACKAGE = Path(heimdallr_ray.__file__).parent
CODE = re.compile(r"[a-z][a-z0-9_]*")
NOT_OF_A_STUDY = {
    # Families, never raised by themselves.
    *("error", "rejected", "retryable"),
    # Answers to a request, or to a start of the stack; explained where they are given.
    *(
        "unauthorized",
        "forbidden",
        "not_retryable",
        "not_open",
        "no_tilt",
        "no_result",
        "bad_setting",
        "bad_archive",
        "empty_input",
        "slow_sender",
        "study_mismatch",
        "token_exists",
        "unsupported_media",
        "not_acceptable",
    ),
    "download_failed",
    # The answer to a request for storage commitment is a status; the log has the words.
    "commitment_refused",
    *("already_running", "draining"),
    # Inside the package only: the worker that lost its lease leaves no word; a gate's reasons stand in its place.
    *("stale_lease", "not_measured"),
    # A study never ends by it: it is of labels that are made ahead.
    "made_way",
}


def trees(folder: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((PACKAGE / folder).rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def texts(node: ast.AST) -> set[str]:
    """Codes among the string constants in `node`; a formatted one counts with its beginning and a star."""
    found: set[str] = set()
    inside: set[int] = set()
    for child in ast.walk(node):
        if isinstance(child, ast.JoinedStr):
            first = child.values[0]
            inside |= {id(value) for value in child.values}
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                found.add(f"{first.value.partition(':')[0]}{'' if ':' in first.value else '*'}")
    for child in ast.walk(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str) and id(child) not in inside:
            found.add(child.value)
    return {text for text in found if CODE.fullmatch(text.rstrip("*"))}


def called(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def error_codes() -> set[str]:
    """`code` of every error class."""
    found: set[str] = set()
    for _, tree in trees("."):
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                for line in node.body:
                    target = line.targets[0] if isinstance(line, ast.Assign) else getattr(line, "target", None)
                    if isinstance(target, ast.Name) and target.id == "code":
                        found |= texts(line)
    return found


def series_codes() -> set[str]:
    """What refuses a series: the rules of the selection, and every rule that a volume must keep."""
    found = {"too_large"}
    for _, tree in trees("."):
        for call in called(tree, "NotAVolume"):
            found |= texts(call.args[0])
        for call in called(tree, "Rule"):
            found |= texts(call.args[0]) if call.args else set()
    selection = ast.parse((PACKAGE / "dicom" / "selection.py").read_text(encoding="utf-8"))
    for node in ast.walk(selection):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple):
            names = [target.id for target in node.targets[0].elts if isinstance(target, ast.Name)]
            if names == ["code", "reason"] and isinstance(node.value, ast.Tuple):
                found |= texts(node.value.elts[0])
    return found - {"chosen"}


def image_flags() -> set[str]:
    found: set[str] = set()
    for _, tree in trees("dicom"):
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and node.name in ("flags", "_flags"):
                for call in ast.walk(node):
                    if (
                        isinstance(call, ast.Call)
                        and isinstance(call.func, ast.Attribute)
                        and call.func.attr == "append"
                    ):
                        found |= texts(call)
    return found


def measurement_codes() -> set[str]:
    """What stands in `reasons` of a measurement."""
    found = {"geometry_mismatch"} | {str(code) for code in LeftOutCode}
    for _, tree in trees("metrics"):
        for call in called(tree, "NotMeasured"):
            found |= texts(call.args[1])
        for call in called(tree, "Reading"):
            found |= texts(call.args[2]) if len(call.args) > 2 else set()
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                held = node.func.value
                if node.func.attr in ("append", "add", "extend") and isinstance(held, ast.Name):
                    found |= texts(node) if held.id in ("notes", "reasons") else set()
            elif isinstance(node, ast.Assign):
                names = {part.id for target in node.targets for part in ast.walk(target) if isinstance(part, ast.Name)}
                found |= texts(node.value) if names & {"notes", "cut"} else set()
                if names == {"code"}:
                    found |= texts(node.value)
            elif isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) == "tuple[str, ...]":
                for line in ast.walk(node):
                    found |= texts(line) if isinstance(line, ast.Return) else set()
    sides = [side for pair in SIDES for side in pair]
    whole = {f"border_{side}" for side in sides} | {f"brain_border_{side}" for side in sides}
    assert {code for code in found if code.endswith("*")} == {"border_*", "brain_*"}
    return {code for code in found if not code.endswith("*")} - NOT_OF_A_STUDY | whole


EXPECTED = {
    Place.STUDY: (error_codes() - NOT_OF_A_STUDY)
    | {ATTEMPTS_EXHAUSTED, WORKER_LOST_REPEATEDLY, LATE_IMAGES_UNCHANGED}
    | {code.value for code in CloseCode}
    | {TRANSFER_INCOMPLETE, SOP_UID_CONFLICT},
    Place.SERIES: series_codes(),
    Place.IMAGE: image_flags(),
    Place.TASK: {str(code) for code in LeftOutCode},
    Place.STATUS: {str(status) for status in Status},
    Place.MEASUREMENT: measurement_codes(),
}


@pytest.mark.parametrize("place", list(Place))
def test_every_code_of_a_place_has_a_sentence_and_every_sentence_a_code(place: Place) -> None:
    written = {reason.code for reason in REASONS if place in reason.places}
    assert (EXPECTED[place] - written, written - EXPECTED[place]) == (set(), set())


def test_the_search_finds_what_it_should() -> None:
    """Guards the search itself: codes of every way in which the package writes one."""
    assert {"broken", "no_usable_series", "oom"} <= EXPECTED[Place.STUDY]
    assert {"outranked", "sharp_kernel", "localizer", "not_volume_sop", "four_d"} <= EXPECTED[Place.SERIES]
    assert {"tilt", "no_rescale"} <= EXPECTED[Place.IMAGE]
    assert {"not_ct", "metal", "level_unverified", "spacing_too_coarse"} <= EXPECTED[Place.MEASUREMENT]
    assert {"task_not_run", "outside_blood_range", "negative_not_excluded", "licence"} <= EXPECTED[Place.MEASUREMENT]
    assert error_codes() >= NOT_OF_A_STUDY


def test_one_code_has_one_sentence() -> None:
    assert len(SENTENCES) == len(REASONS)


def test_sentences_are_sentences() -> None:
    for code, sentence in SENTENCES.items():
        assert re.fullmatch(r"[A-Z].{8,240}\.", sentence), code
        assert "_" not in sentence, code
