"""A changed rule table is a changed build, as changed code is."""

from __future__ import annotations

from pathlib import Path

import heimdallr_ray
from heimdallr_ray.operations.build import BEHAVIOUR, build_id


def test_code_and_rule_tables_count_and_pages_do_not(tmp_path: Path) -> None:
    (tmp_path / "code.py").write_text("A = 1\n")
    (tmp_path / "rules.toml").write_text("weight = 1\n")
    (tmp_path / "page.js").write_text("1\n")
    first = build_id(tmp_path)
    assert first.startswith(heimdallr_ray.__version__ + "+")
    (tmp_path / "page.js").write_text("2\n")
    assert build_id(tmp_path) == first
    (tmp_path / "rules.toml").write_text("weight = 2\n")
    second = build_id(tmp_path)
    assert second != first
    (tmp_path / "rules.toml").write_text("weight = 1\n")
    (tmp_path / "rules.toml").rename(tmp_path / "other.toml")
    assert build_id(tmp_path) not in (first, second)


def test_the_rule_table_of_the_package_counts() -> None:
    tables = list(Path(heimdallr_ray.__file__).parent.rglob("*.toml"))
    assert tables and all(path.suffix in BEHAVIOUR for path in tables)
