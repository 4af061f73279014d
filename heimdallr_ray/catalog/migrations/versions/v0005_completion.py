"""When a study is complete: who sent to it and how that ended, when and why it closes, which result still stands."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from heimdallr_ray.catalog.types import UtcDateTime

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_COUNTS = ("stored", "duplicates", "refused")


def upgrade() -> None:
    """What came before has no known end, and no plan for its closing; each result stands for its own epoch."""
    op.create_table(
        "association",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("door", sa.String(length=8), nullable=True),
        sa.Column("calling_ae", sa.String(length=16), nullable=True),
        sa.Column("called_ae", sa.String(length=16), nullable=True),
        sa.Column("address", sa.String(length=64), nullable=True),
        sa.Column("implementation", sa.String(length=64), nullable=True),
        sa.Column("opened_at", UtcDateTime(), nullable=True),
        sa.Column("closed_at", UtcDateTime(), nullable=True),
        sa.Column("how", sa.String(length=8), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        *(sa.Column(name, sa.Integer(), nullable=False) for name in _COUNTS),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index("ix_association_closed_at", "association", ["closed_at"], unique=False)
    op.create_index("ix_association_opened_at", "association", ["opened_at"], unique=False)
    # The unique key of the table begins with study_id already.
    op.drop_index("ix_instance_study_id", table_name="instance")
    op.create_index("ix_instance_sender", "instance", ["study_id", "epoch", "association_id"], unique=False)
    op.add_column("study", sa.Column("n_expected", sa.Integer(), nullable=True))
    op.add_column("study", sa.Column("epoch_opened_at", UtcDateTime(), nullable=True))
    op.add_column("study", sa.Column("closes_at", UtcDateTime(), nullable=True))
    op.add_column("study", sa.Column("close_code", sa.String(length=32), nullable=True))
    op.add_column("study", sa.Column("close_reason", sa.Text(), nullable=True))
    op.add_column("result", sa.Column("inputs_sha256", sa.String(length=64), nullable=True))
    op.add_column("result", sa.Column("kept_epoch", sa.Integer(), nullable=True))


def downgrade() -> None:
    """Forget who sent, and why studies closed."""
    op.drop_column("result", "kept_epoch")
    op.drop_column("result", "inputs_sha256")
    for name in ("close_reason", "close_code", "closes_at", "epoch_opened_at", "n_expected"):
        op.drop_column("study", name)
    op.drop_index("ix_instance_sender", table_name="instance")
    op.create_index("ix_instance_study_id", "instance", ["study_id"], unique=False)
    op.drop_index("ix_association_opened_at", table_name="association")
    op.drop_index("ix_association_closed_at", table_name="association")
    op.drop_table("association")
