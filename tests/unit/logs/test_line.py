from __future__ import annotations

import ast
import json
import logging
import math
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

import heimdallr_ray
from heimdallr_ray.errors import StorageFull
from heimdallr_ray.logs.line import MAX_FRAMES, MAX_ITEMS, MAX_LINE_BYTES, MAX_TEXT, error_words, line_of, time_words

PATIENT = "DOE^JANE"


class How(StrEnum):
    RELEASED = "released"


class Speaking:
    def __repr__(self) -> str:
        return PATIENT

    __str__ = __repr__


@pytest.fixture(autouse=True)
def _records_as_python_makes_them() -> Iterator[None]:
    """Ray puts a factory of its own into every process that imports it."""
    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(logging.LogRecord)
    yield
    logging.setLogRecordFactory(before)


def record(name: str = "heimdallr_ray.x", message: str = "study.closed", *args: object, **extra: object) -> Any:
    made = logging.getLogger(name).makeRecord(
        name, logging.WARNING, "/srv/lib/site-packages/thing/part.py", 7, message, args, None, "speak", extra
    )
    return made


def parsed(one: logging.LogRecord) -> dict[str, Any]:
    line = line_of(one, "listener")
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert len(line) <= MAX_LINE_BYTES
    assert all(0x20 <= byte < 0x7F for byte in line[:-1])
    return json.loads(line)


def fail(error: BaseException) -> None:
    raise error


def caught(error: BaseException) -> logging.LogRecord:
    made = record()
    try:
        fail(error)
    except BaseException:
        made.exc_info = sys.exc_info()
    return made


def test_a_line_says_when_who_and_what_with_all_fields() -> None:
    one = record(message="%s does not work: %s", reason="called_ae", level="warn", pid=7, n=1.5, none=None)
    one.args, one.created = ("HTTP", "silent"), datetime(2026, 3, 1, 12, 0, 0, 123456, UTC).timestamp()
    assert parsed(one) == {
        "time": "2026-03-01T12:00:00.123Z",
        "level": "WARNING",
        "event": "HTTP does not work: silent",
        "logger": "heimdallr_ray.x",
        "process": "listener",
        "pid": one.process,
        "fields": {"reason": "called_ae", "level": "warn", "pid": 7, "n": 1.5, "none": None},
    }


BESIDE_RAY = """
import logging, sys
import ray
from heimdallr_ray.logs.line import line_of
one = logging.getLogger("heimdallr_ray.x").makeRecord(
    "heimdallr_ray.x", logging.INFO, "part.py", 7, "study.closed", (), None, "speak", {"reason": "idle"}
)
python = set(vars(logging.LogRecord("", 0, "", 0, "", (), None)))
print(sorted(set(vars(one)) - python))
print(line_of(one, "listener").decode())
"""


def test_what_ray_adds_to_every_record_is_no_field() -> None:
    done = subprocess.run([sys.executable, "-c", BESIDE_RAY], capture_output=True, text=True, timeout=120, check=True)
    names, line = done.stdout.splitlines()[:2]
    assert names == "['_ray_timestamp_ns', 'reason']", "Ray adds what it always did, and it is left out below"
    assert json.loads(line)["fields"] == {"reason": "idle"}


def test_the_time_has_milliseconds_also_where_they_are_none() -> None:
    assert time_words(0.0) == "1970-01-01T00:00:00.000Z"


def test_a_strangers_text_cannot_end_the_line_or_reach_the_terminal() -> None:
    name = 'EVIL\r\n{"event":"x"}\u2028\x1b[2J\ud800\x7f'
    assert parsed(record(calling_ae=name))["fields"]["calling_ae"] == name


def test_values_are_plain_and_objects_do_not_speak() -> None:
    fields = parsed(
        record(
            how=How.RELEASED,
            path=Path("a/b"),
            at=datetime(2026, 1, 1, tzinfo=UTC),
            bad=math.nan,
            what=Speaking(),
            content=b"DOE",
            nested={"a": [1, (2, {"deep": [Speaking()]})], Speaking(): 1},
        )
    )["fields"]
    assert fields["how"] == "released"
    assert fields["path"] == "a/b"
    assert fields["at"] == "2026-01-01 00:00:00+00:00"
    assert fields["bad"] == "nan"
    assert fields["what"] == "<Speaking>"
    assert fields["content"] == "<bytes>"
    assert fields["nested"] == {"a": [1, [2, "<dict>"]], "<Speaking>": 1}


def test_everything_is_bounded() -> None:
    fields = parsed(record(text="x" * 10_000, many=list(range(1000))))["fields"]
    assert len(fields["text"]) == MAX_TEXT
    assert len(fields["many"]) == MAX_ITEMS
    huge = parsed(record(**{f"f{number}": "\u2028" * 500 for number in range(200)}))
    assert list(huge["fields"]) == ["too_long"]
    assert huge["event"] == "study.closed"


def test_a_foreign_error_tells_type_and_frames_and_nothing_of_its_words() -> None:
    def read() -> None:
        try:
            float(PATIENT)
        except ValueError as error:
            raise KeyError(PATIENT) from error

    made = record()
    try:
        read()
    except KeyError:
        made.exc_info = sys.exc_info()
    line = line_of(made, "listener")
    assert b"DOE" not in line
    error = json.loads(line)["error"]
    assert error["type"] == "KeyError"
    assert error["frames"][-1].endswith(" read")
    assert "tests/unit/logs/test_line.py:".removeprefix("tests/") in error["frames"][-1]
    assert error["cause"]["type"] == "ValueError"


def test_our_errors_and_the_systems_say_why() -> None:
    assert parsed(caught(StorageFull("4 MiB left")))["error"] | {"frames": []} == {
        "type": "heimdallr_ray.errors.StorageFull",
        "code": "storage_full",
        "detail": "4 MiB left",
        "frames": [],
    }
    words = parsed(caught(FileNotFoundError(2, "No such file", f"/in/{PATIENT}.dcm")))["error"]
    assert words["errno"] == "ENOENT"
    assert PATIENT not in json.dumps(words)
    group = parsed(caught(ExceptionGroup(PATIENT, [ValueError(PATIENT)])))["error"]
    assert (group["type"], group["cause"]["type"]) == ("ExceptionGroup", "ValueError")
    assert PATIENT not in json.dumps(group)


def test_frames_and_causes_are_bounded() -> None:
    def fall(depth: int) -> None:
        if depth:
            fall(depth - 1)
        raise RuntimeError

    error: BaseException = RuntimeError()
    try:
        fall(100)
    except RuntimeError as found:
        error = found
    words = error_words(error)
    assert len(words["frames"]) == MAX_FRAMES
    last = error
    for _ in range(50):
        last.__cause__ = RuntimeError()
        last = last.__cause__
    assert json.dumps(error_words(error)).count('"type"') == 4


@pytest.mark.parametrize("logger", ["pydicom", "pydicom.valuerep", "pynetdicom", "py.warnings", "asyncio", "rays"])
def test_a_library_that_may_quote_a_data_set_is_named_and_not_quoted(logger: str) -> None:
    values = parsed(record(logger, f"Invalid value for VR PN: '{PATIENT}'", value=PATIENT))
    assert values["event"] == "library.said"
    assert values["logger"] == logger
    assert values["fields"] == {"where": "site-packages/thing/part.py:7 speak"}
    assert PATIENT not in json.dumps(values)


@pytest.mark.parametrize("logger", ["ray", "ray._private.worker", "uvicorn.error", "alembic.runtime.migration"])
def test_of_the_others_the_first_line_is_quoted(logger: str) -> None:
    values = parsed(record(logger, f"a worker died\nTraceback ... {PATIENT}"))
    assert values["fields"]["text"] == "a worker died"
    assert PATIENT not in json.dumps(values)


def test_no_call_of_the_package_writes_an_exception_into_its_fields() -> None:
    """The words of an error are its own affair: `extra` holds `type(error).__name__`, a code or a detail of ours."""
    found: list[str] = []
    for path in Path(heimdallr_ray.__file__).parent.rglob("*.py"):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            for extra in (word.value for word in call.keywords if word.arg == "extra"):
                names = [
                    value
                    for value in ast.walk(extra)
                    if isinstance(value, ast.Call)
                    and isinstance(value.func, ast.Name)
                    and value.func.id in ("str", "repr")
                    and value.args
                    and isinstance(value.args[0], ast.Name)
                    and value.args[0].id in ("error", "exc", "failed", "failure")
                ]
                found += [f"{path.name}:{value.lineno}" for value in names]
    assert not found
