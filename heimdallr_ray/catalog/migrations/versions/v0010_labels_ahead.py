"""Labels that are made while a study settles, and how often that was of use."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from heimdallr_ray.catalog.types import UtcDateTime

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """There are none yet, and nothing has been counted."""
    op.create_table(
        "labels_ahead",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("study_id", sa.String(length=32), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("series_uid", sa.String(length=64), nullable=False),
        sa.Column("job_id", _BIG_ID, nullable=False),
        sa.Column("inputs_sha256", sa.String(length=64), nullable=False),
        sa.Column("document", sa.JSON(), nullable=False),
        sa.Column("made_at", UtcDateTime(), nullable=False),
        sa.Column("seconds", sa.Float(), nullable=False),
        sa.Column("used_at", UtcDateTime(), nullable=True),
        sa.Column("used_by", _BIG_ID, nullable=True),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"]),
        sa.PrimaryKeyConstraint("id"),
        sa.UniqueConstraint("study_id", "inputs_sha256"),
    )
    op.create_index(op.f("ix_labels_ahead_made_at"), "labels_ahead", ["made_at"])
    op.create_table(
        "tally",
        sa.Column("what", sa.String(length=48), nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("what"),
    )


def downgrade() -> None:
    """Forget them: their blobs stay in the store, named by nothing."""
    op.drop_table("tally")
    op.drop_index(op.f("ix_labels_ahead_made_at"), table_name="labels_ahead")
    op.drop_table("labels_ahead")
