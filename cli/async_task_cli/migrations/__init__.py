"""What `install`, `upgrade`, `sql` and `check` know of migrations: the one place that imports Alembic."""
