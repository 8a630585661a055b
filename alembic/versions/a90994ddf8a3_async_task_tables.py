"""async-task tables

Revision a90994ddf8a3, after nothing, of 2026-11-21 13:14:18.888935.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import mysql

async_task_schema = 7
async_task_tables = ["async_task_attempts", "async_task_job_events", "async_task_workers", "async_task_queues", "async_task_schedules", "async_task_occurrences", "async_task_schema"]
revision = 'a90994ddf8a3'
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    # What async-task's columns are made of, alike on every database. On MySQL texts are compared exactly, which MySQL
    # and MariaDB spell differently.
    dialect = op.get_context().dialect
    exact = "utf8mb4_nopad_bin" if getattr(dialect, "is_mariadb", False) else "utf8mb4_0900_bin"

    def name(length: int) -> sa.String:
        text = mysql.VARCHAR(length, charset="utf8mb4", collation=exact)
        return sa.String(length).with_variant(text, "mysql", "mariadb")

    identifier = sa.Uuid().with_variant(sa.Uuid(native_uuid=False), "mysql", "mariadb")
    long_text = mysql.LONGTEXT(charset="utf8mb4", collation="utf8mb4_bin")
    text = sa.Text().with_variant(long_text, "mysql", "mariadb")
    instant = sa.DateTime(timezone=True).with_variant(mysql.DATETIME(fsp=6), "mysql", "mariadb")

    op.create_table('async_task_attempts',
        sa.Column('id', identifier, nullable=False),
        sa.Column('status', sa.Enum('pending', 'succeeded', 'failed', 'expired', 'canceled', name='status', native_enum=False, length=16), nullable=False),
        sa.Column('target', name(255), nullable=False),
        sa.Column('method_name', name(255), nullable=False),
        sa.Column('method_args', text, nullable=False),
        sa.Column('encryptor', name(64), nullable=False),
        sa.Column('idempotence_token', name(255), nullable=True),
        sa.Column('queue', name(64), nullable=False),
        sa.Column('priority', sa.SmallInteger(), nullable=False),
        sa.Column('order_key', name(255), nullable=True),
        sa.Column('seq', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), nullable=True),
        sa.Column('released', sa.Boolean(), nullable=False),
        sa.Column('arrived', sa.Boolean(), nullable=True),
        sa.Column('order_slot', name(255), sa.Computed("CASE WHEN status = 'pending' AND released THEN order_key END", persisted=True), nullable=True),
        sa.Column('num_attempts', sa.Integer(), nullable=False),
        sa.Column('num_errors', sa.Integer(), nullable=False),
        sa.Column('num_crashes', sa.Integer(), nullable=False),
        sa.Column('num_losses', sa.Integer(), server_default='0', nullable=False),
        sa.Column('max_attempts', sa.SmallInteger(), nullable=True),
        sa.Column('scheduled_at', instant, nullable=True),
        sa.Column('due_at', instant, nullable=False),
        sa.Column('claim_id', identifier, nullable=True),
        sa.Column('claimed_by', name(128), nullable=True),
        sa.Column('lease_until', instant, nullable=True),
        sa.Column('expires_at', instant, nullable=True),
        sa.Column('attempted_at', instant, nullable=True),
        sa.Column('completed_at', instant, nullable=True),
        sa.Column('last_error', text, nullable=True),
        sa.Column('created_at', instant, nullable=False),
        sa.Column('updated_at', instant, nullable=False),
        sa.Column('trace_context', name(64), nullable=True),
        sa.Column('call_settings', text, nullable=True),
        sa.CheckConstraint("(completed_at IS NULL) = (status = 'pending')", name=op.f('ck_async_task_attempts_completed')),
        sa.CheckConstraint("claim_id IS NULL OR status = 'pending'", name=op.f('ck_async_task_attempts_claimed')),
        sa.CheckConstraint("status IN ('pending', 'succeeded', 'failed', 'expired', 'canceled')", name=op.f('ck_async_task_attempts_status')),
        sa.CheckConstraint('(claim_id IS NULL) = (lease_until IS NULL) AND (claim_id IS NULL) = (claimed_by IS NULL)', name=op.f('ck_async_task_attempts_claim')),
        sa.CheckConstraint('num_attempts >= 0 AND num_errors >= 0 AND num_crashes >= 0', name=op.f('ck_async_task_attempts_counters')),
        sa.CheckConstraint('num_errors + num_crashes <= num_attempts', name=op.f('ck_async_task_attempts_starts')),
        sa.CheckConstraint('num_losses >= 0 AND num_errors + num_crashes + num_losses <= num_attempts', name=op.f('ck_async_task_attempts_losses')),
        sa.CheckConstraint('priority BETWEEN 0 AND 9', name=op.f('ck_async_task_attempts_priority')),
        sa.PrimaryKeyConstraint('id'),
    )
    op.create_index(op.f('ix_async_task_attempts_arrived'), 'async_task_attempts', ['status', 'arrived'], unique=False, postgresql_where=sa.text("status = 'pending' AND arrived"), sqlite_where=sa.text("status = 'pending' AND arrived = 1"))
    op.create_index(op.f('ix_async_task_attempts_expiry'), 'async_task_attempts', ['status', 'expires_at'], unique=False, postgresql_where=sa.text('completed_at IS NULL AND expires_at IS NOT NULL'), sqlite_where=sa.text('completed_at IS NULL AND expires_at IS NOT NULL'))
    op.create_index(op.f('ix_async_task_attempts_keyed'), 'async_task_attempts', ['status', 'order_key', 'seq'], unique=False, postgresql_where=sa.text('completed_at IS NULL AND order_key IS NOT NULL'), sqlite_where=sa.text('completed_at IS NULL AND order_key IS NOT NULL'))
    op.create_index(op.f('ix_async_task_attempts_lease'), 'async_task_attempts', ['lease_until'], unique=False, postgresql_where=sa.text("status = 'pending' AND claim_id IS NOT NULL"), sqlite_where=sa.text("status = 'pending' AND claim_id IS NOT NULL"))
    op.create_index(op.f('ix_async_task_attempts_suspect'), 'async_task_attempts', ['status', 'num_crashes', 'num_losses'], unique=False, postgresql_where=sa.text("status = 'pending' AND (num_crashes > 0 OR num_crashes = 0 AND num_losses > 0)"), sqlite_where=sa.text("status = 'pending' AND (num_crashes > 0 OR num_crashes = 0 AND num_losses > 0)"))
    op.create_index(op.f('ix_async_task_attempts_waiting'), 'async_task_attempts', ['status', 'released', 'queue', 'priority', 'due_at', 'id'], unique=False, postgresql_where=sa.text('completed_at IS NULL AND claim_id IS NULL'), sqlite_where=sa.text('completed_at IS NULL AND claim_id IS NULL'))
    op.create_index(op.f('uq_async_task_attempts_order'), 'async_task_attempts', ['order_slot'], unique=True, postgresql_where=sa.text('order_slot IS NOT NULL'), sqlite_where=sa.text('order_slot IS NOT NULL'))
    op.create_index(op.f('uq_async_task_attempts_token'), 'async_task_attempts', ['target', 'method_name', 'idempotence_token'], unique=True, postgresql_where=sa.text('idempotence_token IS NOT NULL'), sqlite_where=sa.text('idempotence_token IS NOT NULL'))
    op.create_table('async_task_job_events',
        sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
        sa.Column('job_type', name(128), nullable=False),
        sa.Column('job_id', name(64), nullable=False),
        sa.Column('kind', name(32), nullable=False),
        sa.Column('num_attempt', sa.Integer(), nullable=True),
        sa.Column('actor', name(255), nullable=True),
        sa.Column('message', text, nullable=True),
        sa.Column('detail', text, nullable=True),
        sa.Column('created_at', instant, nullable=False),
        sa.Column('fingerprint', name(16), nullable=True),
        sa.PrimaryKeyConstraint('id'),
    )
    op.create_index('ix_async_task_job_events_fingerprint', 'async_task_job_events', ['job_type', 'fingerprint', 'id'], unique=False, postgresql_where=sa.text('fingerprint IS NOT NULL'), sqlite_where=sa.text('fingerprint IS NOT NULL'))
    op.create_index('ix_async_task_job_events_job', 'async_task_job_events', ['job_type', 'job_id', 'id'], unique=False)
    op.create_table('async_task_workers',
        sa.Column('name', name(128), nullable=False),
        sa.Column('host', name(255), nullable=False),
        sa.Column('pid', sa.Integer(), nullable=False),
        sa.Column('process_started', name(64), nullable=False),
        sa.Column('started_at', instant, nullable=False),
        sa.Column('beat_at', instant, nullable=False),
        sa.Column('kind', name(32), nullable=True),
        sa.Column('job_type', name(128), nullable=True),
        sa.Column('asleep', sa.Boolean(), server_default='0', nullable=False),
        sa.Column('about', text, nullable=True),
        sa.PrimaryKeyConstraint('name'),
    )
    op.create_table('async_task_queues',
        sa.Column('name', name(64), nullable=False),
        sa.Column('paused_at', instant, nullable=True),
        sa.Column('paused_by', name(255), nullable=True),
        sa.Column('pause_reason', text, nullable=True),
        sa.Column('max_running', sa.Integer(), nullable=True),
        sa.Column('rate', sa.Double(), nullable=True),
        sa.Column('burst', sa.Integer(), nullable=True),
        sa.Column('tokens', sa.Double(), nullable=True),
        sa.Column('refilled_at', instant, nullable=True),
        sa.PrimaryKeyConstraint('name'),
    )
    op.create_table('async_task_schedules',
        sa.Column('job_type', name(128), nullable=False),
        sa.Column('schedule_key', name(255), nullable=False),
        sa.Column('rule', text, nullable=False),
        sa.Column('decided_until', instant, nullable=False),
        sa.Column('last_attempt_id', identifier, nullable=True),
        sa.Column('paused_at', instant, nullable=True),
        sa.Column('paused_by', name(255), nullable=True),
        sa.Column('pause_reason', text, nullable=True),
        sa.PrimaryKeyConstraint('job_type', 'schedule_key'),
    )
    op.create_table('async_task_occurrences',
        sa.Column('job_type', name(128), nullable=False),
        sa.Column('schedule_key', name(255), nullable=False),
        sa.Column('fire_at', instant, nullable=False),
        sa.Column('status', name(16), nullable=False),
        sa.Column('reason', text, nullable=True),
        sa.Column('attempt_id', identifier, nullable=True),
        sa.Column('created_at', instant, nullable=False),
        sa.PrimaryKeyConstraint('job_type', 'schedule_key', 'fire_at'),
    )
    op.create_table('async_task_schema',
        sa.Column('version', sa.Integer(), autoincrement=False, nullable=False),
        sa.PrimaryKeyConstraint('version'),
    )
    if dialect.name == "postgresql":
        op.execute("ALTER TABLE async_task_attempts SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0)")
    if dialect.name == "postgresql":
        op.execute("CREATE SEQUENCE IF NOT EXISTS sq_async_task_attempts_order OWNED BY async_task_attempts.seq")
    op.bulk_insert(sa.table("async_task_schema", sa.column("version", sa.Integer())), [{"version": 7}])


def downgrade() -> None:
    op.drop_table("async_task_schema")
    op.drop_table("async_task_occurrences")
    op.drop_table("async_task_schedules")
    op.drop_table("async_task_queues")
    op.drop_table("async_task_workers")
    op.drop_table("async_task_job_events")
    op.drop_table("async_task_attempts")
