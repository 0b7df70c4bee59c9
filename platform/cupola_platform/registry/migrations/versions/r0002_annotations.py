"""What people say of two answers."""

import sqlalchemy as sa
from alembic import op

revision = "r0002"
down_revision = "r0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "annotation",
        sa.Column("artifact", sa.String(length=64), nullable=False),
        sa.Column("pair", sa.String(length=255), nullable=False),
        sa.Column("annotator", sa.String(length=64), nullable=False),
        sa.Column("choice", sa.String(length=16), nullable=False),
        sa.Column("made", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["artifact"], ["artifact.digest"], name="fk_annotation_artifact", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("artifact", "pair", "annotator", name="pk_annotation"),
    )


def downgrade() -> None:
    op.drop_table("annotation")
