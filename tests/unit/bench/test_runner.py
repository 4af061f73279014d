from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import pytest

from bench import __main__ as runner

FIGURE = {"figure": "speed", "value": 3.0, "unit": "MB/s", "peer": "dcmtk", "peer_value": 2.0}


@dataclass
class Fixed:
    figures: list[Mapping[str, object]]
    fails: bool = False
    NAME: str = "fixed"
    asked_full: list[bool] = field(default_factory=list)

    def run(self, full: bool) -> Iterator[Mapping[str, object]]:
        self.asked_full.append(full)
        yield from self.figures
        if self.fails:
            raise OSError("the peer went away")


@pytest.mark.parametrize(
    ("bar", "ok"),
    [
        (">=1.5", True),
        (">1.5", False),
        ("<=1.5", True),
        ("<1.5", False),
        ("==1.5", True),
        (None, True),
    ],
)
def test_a_bar_is_held_against_the_ratio_where_there_is_a_peer(bar: str | None, ok: bool) -> None:
    line = runner.completed("b", {**FIGURE, "bar": bar})
    assert line["ok"] is ok
    assert line["ratio"] == 1.5
    assert list(line) == ["bench", "figure", "value", "unit", "peer", "peer_value", "ratio", "bar", "ok"]


@pytest.mark.parametrize(
    "change",
    [
        {"value": float("nan")},
        {"value": "3"},
        {"value": True},
        {"peer_value": 0},
        {"peer_value": None},
        {"peer": None},
        {"bar": "fast"},
        {"bar": 3},
        {"ok": True},
    ],
)
def test_what_is_not_a_figure_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(runner.BadFigure):
        runner.completed("b", {**FIGURE, **change})


@pytest.mark.parametrize(("bar", "ok"), [("<=3", True), ("<3", False)])
def test_a_bar_is_held_against_the_value_where_there_is_no_peer(bar: str, ok: bool) -> None:
    assert runner.completed("b", {"figure": "speed", "value": 3, "unit": "s", "bar": bar})["ok"] is ok


def test_the_run_fails_when_one_bar_fails_and_says_so_a_line_each(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = Fixed([{**FIGURE, "bar": ">=1"}]), Fixed([{**FIGURE, "bar": ">=9"}, FIGURE])
    monkeypatch.setattr(runner, "found", lambda: {"good": good, "bad": bad})
    assert runner.main(["all", "--full"]) == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["bench"], line["ok"]) for line in lines] == [("good", True), ("bad", False), ("bad", True)]
    assert good.asked_full == bad.asked_full == [True]
    assert runner.main(["good"]) == 0


def test_a_benchmark_that_breaks_or_measures_nothing_fails_the_run_and_the_next_still_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    broken, empty, good = Fixed([FIGURE], fails=True), Fixed([]), Fixed([FIGURE])
    monkeypatch.setattr(runner, "found", lambda: {"broken": broken, "empty": empty, "good": good})
    assert runner.main(["all"]) == 1
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 2
    assert "the peer went away" in printed.err
    assert "measured nothing" in printed.err
    assert runner.main(["empty"]) == 1


def test_a_module_needs_both_name_and_run_or_neither(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = {"bench.a": Fixed([]), "bench.b": SimpleNamespace(), "bench.c": SimpleNamespace(run=len)}
    monkeypatch.setattr(runner.importlib, "import_module", parts.__getitem__)
    monkeypatch.setattr(runner, "modules", lambda: ["a", "b"])
    assert list(runner.found()) == ["fixed"]
    monkeypatch.setattr(runner, "modules", lambda: ["a", "c"])
    with pytest.raises(runner.BadFigure, match=r"c\.py needs both"):
        runner.found()


def test_the_benchmarks_of_this_folder_can_be_listed() -> None:
    assert {"convert", "road", "segment"} <= set(runner.found())


FOLDER = Path(runner.__file__).parent


@pytest.mark.parametrize(
    ("name", "bar"),
    [
        ("convert.cpu_vs_dcm2niix_gz", ">=8.0"),
        ("convert.cpu_vs_fastest_right_peer", "<=1.0"),
        ("archive.cpu_vs_zlib6", ">=10.0"),
        ("archive.bytes_vs_zlib6", "<=1.10"),
        ("segment.outside_forward_s", "<=0.6"),
        ("segment.overhead_vs_api", "<=0.125"),
        ("segment.second_task_saved_s", ">0"),
        ("segment.memory_large_gib", "<=16"),
    ],
)
def test_every_figure_of_record_is_yielded_with_its_bar_and_stands_in_the_table(name: str, bar: str) -> None:
    sources = "".join(path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py"))
    _, _, figure = sources.partition(f'"figure": "{name}"')
    assert figure[: figure.find("}\n")].count(f'"bar": "{bar}"') == 1
    assert f"| `{name}` |" in (FOLDER / "README.md").read_text(encoding="utf-8")
