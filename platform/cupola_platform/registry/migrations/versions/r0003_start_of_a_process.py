"""A run's process is known by its start since boot, not by a time of day."""

import sqlalchemy as sa
from alembic import op

revision = "r0003"
down_revision = "r0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("run") as batch:
        batch.drop_column("process_started")
        batch.add_column(sa.Column("process_start", sa.String(length=64), nullable=False, server_default=""))


def downgrade() -> None:
    with op.batch_alter_table("run") as batch:
        batch.drop_column("process_start")
        batch.add_column(sa.Column("process_started", sa.Float(), nullable=False, server_default="0"))
