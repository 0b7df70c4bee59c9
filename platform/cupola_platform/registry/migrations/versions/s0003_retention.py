"""When an artifact was last used, and which ones are being removed."""

import sqlalchemy as sa
from alembic import op

revision = "s0003"
down_revision = "s0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("artifact", sa.Column("used", sa.DateTime(timezone=True), nullable=True))
    op.create_table(
        "removal",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("stage", sa.String(length=128), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("digest", name="pk_removal"),
    )


def downgrade() -> None:
    op.drop_table("removal")
    op.drop_column("artifact", "used")
