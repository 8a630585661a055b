BEGIN;

ALTER TABLE async_task_attempts ADD COLUMN arrived BOOLEAN;

DROP INDEX ix_async_task_attempts_waiting;

CREATE INDEX ix_async_task_attempts_waiting ON async_task_attempts (status, released, queue, priority, due_at, id) WHERE completed_at IS NULL AND claim_id IS NULL;

DROP INDEX ix_async_task_attempts_expiry;

CREATE INDEX ix_async_task_attempts_expiry ON async_task_attempts (status, expires_at) WHERE completed_at IS NULL AND expires_at IS NOT NULL;

CREATE INDEX ix_async_task_attempts_keyed ON async_task_attempts (status, order_key, seq) WHERE completed_at IS NULL AND order_key IS NOT NULL;

CREATE INDEX ix_async_task_attempts_arrived ON async_task_attempts (status, arrived) WHERE status = 'pending' AND arrived;

CREATE INDEX ix_async_task_attempts_suspect ON async_task_attempts (status, num_crashes) WHERE status = 'pending' AND num_crashes > 0;

CREATE SEQUENCE IF NOT EXISTS sq_async_task_attempts_order OWNED BY async_task_attempts.seq;

ALTER TABLE async_task_workers ADD COLUMN asleep BOOLEAN DEFAULT '0' NOT NULL;

ALTER TABLE async_task_workers ADD COLUMN about TEXT;

CREATE TABLE async_task_queues (
    name VARCHAR(64) NOT NULL,
    paused_at TIMESTAMP WITH TIME ZONE,
    paused_by VARCHAR(255),
    pause_reason TEXT,
    max_running INTEGER,
    rate DOUBLE PRECISION,
    burst INTEGER,
    tokens DOUBLE PRECISION,
    refilled_at TIMESTAMP WITH TIME ZONE,
    PRIMARY KEY (name)
);

UPDATE async_task_schema SET version=3;

COMMIT;
