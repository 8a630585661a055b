"""Migrations, for `install`, `upgrade`, `sql` and `check`. Nothing else imports Alembic."""
