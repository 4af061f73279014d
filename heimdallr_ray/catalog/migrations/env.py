"""Alembic's entry: the connection and its transaction come from `heimdallr_ray.catalog.migrate`."""

from __future__ import annotations

from typing import cast

from alembic import context
from sqlalchemy import Connection
from sqlmodel import SQLModel

from heimdallr_ray.catalog import tables

connection = cast(Connection, context.config.attributes["connection"])
assert tables.StudyRow.metadata is SQLModel.metadata  # noqa: S101
context.configure(
    connection=connection,
    target_metadata=SQLModel.metadata,
    transactional_ddl=True,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
