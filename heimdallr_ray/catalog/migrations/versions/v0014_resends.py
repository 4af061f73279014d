"""Who sends known images to an open study is one of its senders: how that transfer ends counts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """What was sent again before is not known any more."""
    op.create_table(
        "resend",
        sa.Column("study_id", sa.String(length=32), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("association_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["study_id"], ["study.id"]),
        sa.PrimaryKeyConstraint("study_id", "epoch", "association_id"),
    )


def downgrade() -> None:
    """Waits follow the senders of new images alone."""
    op.drop_table("resend")
