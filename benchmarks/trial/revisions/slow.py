"""Take 3 s, then add a nullable column."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Wait, holding no lock on any table, then add the column."""
    op.execute("SELECT pg_sleep(3)")
    op.add_column("items", sa.Column("note", sa.Text(), nullable=True))


def downgrade() -> None:
    """Drop the column with everything in it."""
    op.drop_column("items", "note")
