"""Which study is inside which segmentation engine, and which deaths of engines it has seen."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from heimdallr_ray.catalog.types import UtcDateTime

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_BIG_ID = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    """No engine has died yet, as far as is known."""
    op.create_table(
        "engine_call",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("job_id", _BIG_ID, nullable=False),
        sa.Column("fence", sa.Integer(), nullable=False),
        sa.Column("input_hash", sa.String(length=64), nullable=False),
        sa.Column("replica", sa.String(length=64), nullable=False),
        sa.Column("node", sa.String(length=64), nullable=False),
        sa.Column("state", sa.String(length=8), nullable=False),
        sa.Column("began_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_engine_call_job_id", "engine_call", ["job_id"], unique=False)
    op.create_index("ix_engine_call_replica", "engine_call", ["replica"], unique=False)


def downgrade() -> None:
    """Forget the deaths."""
    op.drop_index("ix_engine_call_replica", table_name="engine_call")
    op.drop_index("ix_engine_call_job_id", table_name="engine_call")
    op.drop_table("engine_call")
