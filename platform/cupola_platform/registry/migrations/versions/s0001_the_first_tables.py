"""The first tables of 0.2: artifacts, their edges and fingerprints, runs, aliases and their moves, annotations.

Revisions r0001 to r0003 were those of 0.1, whose registries are refused.
"""

import sqlalchemy as sa
from alembic import op

revision = "s0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "alias_move",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("previous", sa.String(length=64), nullable=True),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("moved", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alias_move"),
    )
    op.create_index("ix_alias_move_name", "alias_move", ["name"])

    op.create_table(
        "run",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("parent_id", sa.String(length=32), nullable=True),
        sa.Column("recipe", sa.String(length=128), nullable=False),
        sa.Column("stage", sa.String(length=128), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("started", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ended", sa.DateTime(timezone=True), nullable=True),
        sa.Column("artifact", sa.String(length=64), nullable=True),
        sa.Column("prefect_flow_run_id", sa.String(length=64), nullable=True),
        sa.Column("mlflow_run_id", sa.String(length=64), nullable=True),
        sa.Column("work_folder", sa.Text(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("pid", sa.BigInteger(), nullable=False),
        sa.Column("process_start", sa.String(length=64), nullable=False, server_default=""),
        sa.Column("host", sa.String(length=255), nullable=False),
        sa.ForeignKeyConstraint(["parent_id"], ["run.id"], name="fk_run_parent_id", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name="pk_run"),
    )
    op.create_index("ix_run_parent_id", "run", ["parent_id"])
    op.create_index("ix_run_started", "run", ["started"])
    op.create_index("ix_run_status", "run", ["status"])

    op.create_table(
        "artifact",
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("kind", sa.String(length=64), nullable=False),
        sa.Column("stage", sa.String(length=128), nullable=False),
        sa.Column("recipe", sa.String(length=128), nullable=False),
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("config", sa.JSON(), nullable=False),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("files", sa.Integer(), nullable=False),
        sa.Column("run_id", sa.String(length=32), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["run_id"], ["run.id"], name="fk_artifact_run_id", ondelete="SET NULL"),
        sa.PrimaryKeyConstraint("digest", name="pk_artifact"),
    )
    op.create_index("ix_artifact_created", "artifact", ["created"])
    op.create_index("ix_artifact_kind_created", "artifact", ["kind", "created"])

    op.create_table(
        "alias",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("moved", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["artifact.digest"], name="fk_alias_digest"),
        sa.PrimaryKeyConstraint("name", name="pk_alias"),
    )
    op.create_table(
        "edge",
        sa.Column("child", sa.String(length=64), nullable=False),
        sa.Column("position", sa.Integer(), nullable=False),
        sa.Column("parent", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["child"], ["artifact.digest"], name="fk_edge_child", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("child", "position", name="pk_edge"),
    )
    op.create_index("ix_edge_parent", "edge", ["parent"])

    op.create_table(
        "fingerprint",
        sa.Column("fingerprint", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["digest"], ["artifact.digest"], name="fk_fingerprint_digest", ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("fingerprint", name="pk_fingerprint"),
    )
    op.create_index("ix_fingerprint_digest", "fingerprint", ["digest"])

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
    for table in ("annotation", "fingerprint", "edge", "alias", "artifact", "run", "alias_move"):
        op.drop_table(table)
