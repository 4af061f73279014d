"""Runs benchmarks and prints one JSON object a line; exit status 0 only if every bar holds."""

from __future__ import annotations

import argparse
import importlib
import json
import math
import operator
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol, cast

import bench

NEEDED = ("figure", "value", "unit")
ALLOWED = (*NEEDED, "peer", "peer_value", "bar")
BAR = re.compile(r"(<=|>=|==|<|>)(-?[0-9.]+(?:e-?[0-9]+)?)")
COMPARE: dict[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "==": operator.eq,
    "<": operator.lt,
    ">": operator.gt,
}


class BadFigure(ValueError):
    """A benchmark yielded something that is not a figure."""


class Benchmark(Protocol):
    """What each module of this folder offers."""

    NAME: str

    def run(self, full: bool) -> Iterator[Mapping[str, object]]:
        """Yield figures, measured now."""
        ...


def completed(name: str, figure: Mapping[str, object]) -> dict[str, object]:
    """`figure` with bench, ratio and ok worked out, every key there, in the documented order.

    Raises:
        BadFigure: a key is missing or unknown, a value is not a finite number, or the bar cannot be read.
    """
    missing = [key for key in NEEDED if key not in figure]
    unknown = [key for key in figure if key not in ALLOWED]
    if missing or unknown:
        raise BadFigure(f"{name}: missing {missing}, unknown {unknown}")
    value = _number(name, figure["value"])
    peer_value = None if figure.get("peer_value") is None else _number(name, figure["peer_value"])
    if (figure.get("peer") is None) != (peer_value is None):
        raise BadFigure(f"{name}: peer and peer_value come together")
    if peer_value == 0:
        raise BadFigure(f"{name}: a peer_value of 0 has no ratio")
    ratio = None if peer_value is None else value / peer_value
    bar = figure.get("bar")
    return {
        "bench": name,
        "figure": figure["figure"],
        "value": value,
        "unit": figure["unit"],
        "peer": figure.get("peer"),
        "peer_value": peer_value,
        "ratio": None if ratio is None else round(ratio, 4),
        "bar": bar,
        "ok": True if bar is None else _holds(name, bar, value, ratio),
    }


def _number(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise BadFigure(f"{name}: {value!r} is not a finite number")
    return value


def _holds(name: str, bar: object, value: float, ratio: float | None) -> bool:
    parts = BAR.fullmatch(bar) if isinstance(bar, str) else None
    if parts is None:
        raise BadFigure(f"{name}: the bar {bar!r} does not read like '>=1.0'")
    return COMPARE[parts[1]](value if ratio is None else ratio, float(parts[2]))


def modules() -> list[str]:
    """Names of this folder's modules that may be benchmarks, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(bench.__path__) if not module.name.startswith("_"))


def found() -> dict[str, Benchmark]:
    """Every benchmark by its NAME; a module with neither NAME nor run is a part of another one.

    Raises:
        BadFigure: a module with only one of NAME and run, or two modules of one NAME.
    """
    benchmarks: dict[str, Benchmark] = {}
    for module_name in modules():
        module = importlib.import_module(f"bench.{module_name}")
        name, run = getattr(module, "NAME", None), getattr(module, "run", None)
        if name is None and run is None:
            continue
        if not isinstance(name, str) or not callable(run):
            raise BadFigure(f"bench/{module_name}.py needs both NAME and run, or neither")
        if name in benchmarks:
            raise BadFigure(f"bench/{module_name}.py: the name {name} is taken")
        benchmarks[name] = cast(Benchmark, module)
    return benchmarks


def measure(name: str, benchmark: Benchmark, full: bool) -> bool:
    """Print the figures of one benchmark; true if it measured something and every bar holds."""
    held: list[bool] = []
    try:
        for figure in benchmark.run(full):
            line = completed(name, figure)
            print(json.dumps(line), flush=True)
            held.append(line["ok"] is True)
    except Exception:  # one benchmark's failure must not hide the others'; it is printed and fails the run
        traceback.print_exc()
        return False
    if not held:
        print(f"{name} measured nothing", file=sys.stderr)
    return bool(held) and all(held)


def main(arguments: list[str] | None = None) -> int:
    """Run what the command line names; 0 if every bar holds."""
    benchmarks = found()
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=["all", *benchmarks], help="which benchmark")
    parser.add_argument("--full", action="store_true", help="as long as a figure worth quoting needs")
    options = parser.parse_args(arguments)
    chosen = benchmarks if options.name == "all" else {options.name: benchmarks[options.name]}
    if not chosen:
        print("there are no benchmarks", file=sys.stderr)
        return 1
    # A list: each runs, whatever came of the one before.
    results = [measure(name, benchmark, options.full) for name, benchmark in chosen.items()]
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
