"""Count how often this migration ran: one row in trial_migrations each time."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add a row, and the table if it is missing."""
    op.execute("CREATE TABLE IF NOT EXISTS trial_migrations (at timestamptz NOT NULL DEFAULT clock_timestamp())")
    op.execute("INSERT INTO trial_migrations DEFAULT VALUES")


def downgrade() -> None:
    """Keep the rows: they say what happened."""
