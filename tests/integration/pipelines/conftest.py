"""The chain's tests run on both dialects."""

from tests.support.databases import (
    database,
    dialect,
    empty_url,
    folder,
    make_url,
    postgres_template,
    postgres_url,
    sqlite_template,
)

__all__ = [
    "database",
    "dialect",
    "empty_url",
    "folder",
    "make_url",
    "postgres_template",
    "postgres_url",
    "sqlite_template",
]
