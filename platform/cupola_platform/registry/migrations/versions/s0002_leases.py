"""Leases of stages in progress."""

import sqlalchemy as sa
from alembic import op

revision = "s0002"
down_revision = "s0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "lease",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("holder", sa.String(length=32), nullable=False),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("process_start", sa.String(length=64), nullable=False),
        sa.Column("expires", sa.DateTime(timezone=True), nullable=False),
        sa.Column("cluster", sa.String(length=64), nullable=True),
        sa.Column("job", sa.String(length=255), nullable=True),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_lease"),
    )


def downgrade() -> None:
    op.drop_table("lease")
