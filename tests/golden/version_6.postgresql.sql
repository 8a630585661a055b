BEGIN;

CREATE TABLE async_task_attempts (
    id UUID NOT NULL,
    status VARCHAR(16) NOT NULL,
    target VARCHAR(255) NOT NULL,
    method_name VARCHAR(255) NOT NULL,
    method_args TEXT NOT NULL,
    encryptor VARCHAR(64) NOT NULL,
    idempotence_token VARCHAR(255),
    queue VARCHAR(64) NOT NULL,
    priority SMALLINT NOT NULL,
    order_key VARCHAR(255),
    seq BIGINT,
    released BOOLEAN NOT NULL,
    arrived BOOLEAN,
    order_slot VARCHAR(255) GENERATED ALWAYS AS (CASE WHEN status = 'pending' AND released THEN order_key END) STORED,
    num_attempts INTEGER NOT NULL,
    num_errors INTEGER NOT NULL,
    num_crashes INTEGER NOT NULL,
    num_losses INTEGER DEFAULT '0' NOT NULL,
    max_attempts SMALLINT,
    scheduled_at TIMESTAMP WITH TIME ZONE,
    due_at TIMESTAMP WITH TIME ZONE NOT NULL,
    claim_id UUID,
    claimed_by VARCHAR(128),
    lease_until TIMESTAMP WITH TIME ZONE,
    expires_at TIMESTAMP WITH TIME ZONE,
    attempted_at TIMESTAMP WITH TIME ZONE,
    completed_at TIMESTAMP WITH TIME ZONE,
    last_error TEXT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    updated_at TIMESTAMP WITH TIME ZONE NOT NULL,
    trace_context VARCHAR(64),
    PRIMARY KEY (id),
    CONSTRAINT ck_async_task_attempts_completed CHECK ((completed_at IS NULL) = (status = 'pending')),
    CONSTRAINT ck_async_task_attempts_claimed CHECK (claim_id IS NULL OR status = 'pending'),
    CONSTRAINT ck_async_task_attempts_status CHECK (status IN ('pending', 'succeeded', 'failed', 'expired', 'canceled')),
    CONSTRAINT ck_async_task_attempts_claim CHECK ((claim_id IS NULL) = (lease_until IS NULL) AND (claim_id IS NULL) = (claimed_by IS NULL)),
    CONSTRAINT ck_async_task_attempts_counters CHECK (num_attempts >= 0 AND num_errors >= 0 AND num_crashes >= 0),
    CONSTRAINT ck_async_task_attempts_starts CHECK (num_errors + num_crashes <= num_attempts),
    CONSTRAINT ck_async_task_attempts_losses CHECK (num_losses >= 0 AND num_errors + num_crashes + num_losses <= num_attempts),
    CONSTRAINT ck_async_task_attempts_priority CHECK (priority BETWEEN 0 AND 9)
);

CREATE INDEX ix_async_task_attempts_arrived ON async_task_attempts (status, arrived) WHERE status = 'pending' AND arrived;

CREATE INDEX ix_async_task_attempts_expiry ON async_task_attempts (status, expires_at) WHERE completed_at IS NULL AND expires_at IS NOT NULL;

CREATE INDEX ix_async_task_attempts_keyed ON async_task_attempts (status, order_key, seq) WHERE completed_at IS NULL AND order_key IS NOT NULL;

CREATE INDEX ix_async_task_attempts_lease ON async_task_attempts (lease_until) WHERE status = 'pending' AND claim_id IS NOT NULL;

CREATE INDEX ix_async_task_attempts_suspect ON async_task_attempts (status, num_crashes, num_losses) WHERE status = 'pending' AND (num_crashes > 0 OR num_crashes = 0 AND num_losses > 0);

CREATE INDEX ix_async_task_attempts_waiting ON async_task_attempts (status, released, queue, priority, due_at, id) WHERE completed_at IS NULL AND claim_id IS NULL;

CREATE UNIQUE INDEX uq_async_task_attempts_order ON async_task_attempts (order_slot) WHERE order_slot IS NOT NULL;

CREATE UNIQUE INDEX uq_async_task_attempts_token ON async_task_attempts (target, method_name, idempotence_token) WHERE idempotence_token IS NOT NULL;

CREATE TABLE async_task_job_events (
    id BIGSERIAL NOT NULL,
    job_type VARCHAR(128) NOT NULL,
    job_id VARCHAR(64) NOT NULL,
    kind VARCHAR(32) NOT NULL,
    num_attempt INTEGER,
    actor VARCHAR(255),
    message TEXT,
    detail TEXT,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    fingerprint VARCHAR(16),
    PRIMARY KEY (id)
);

CREATE INDEX ix_async_task_job_events_fingerprint ON async_task_job_events (job_type, fingerprint, id) WHERE fingerprint IS NOT NULL;

CREATE INDEX ix_async_task_job_events_job ON async_task_job_events (job_type, job_id, id);

CREATE TABLE async_task_workers (
    name VARCHAR(128) NOT NULL,
    host VARCHAR(255) NOT NULL,
    pid INTEGER NOT NULL,
    process_started VARCHAR(64) NOT NULL,
    started_at TIMESTAMP WITH TIME ZONE NOT NULL,
    beat_at TIMESTAMP WITH TIME ZONE NOT NULL,
    kind VARCHAR(32),
    job_type VARCHAR(128),
    asleep BOOLEAN DEFAULT '0' NOT NULL,
    about TEXT,
    PRIMARY KEY (name)
);

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

CREATE TABLE async_task_schedules (
    job_type VARCHAR(128) NOT NULL,
    schedule_key VARCHAR(255) NOT NULL,
    rule TEXT NOT NULL,
    decided_until TIMESTAMP WITH TIME ZONE NOT NULL,
    last_attempt_id UUID,
    paused_at TIMESTAMP WITH TIME ZONE,
    paused_by VARCHAR(255),
    pause_reason TEXT,
    PRIMARY KEY (job_type, schedule_key)
);

CREATE TABLE async_task_occurrences (
    job_type VARCHAR(128) NOT NULL,
    schedule_key VARCHAR(255) NOT NULL,
    fire_at TIMESTAMP WITH TIME ZONE NOT NULL,
    status VARCHAR(16) NOT NULL,
    reason TEXT,
    attempt_id UUID,
    created_at TIMESTAMP WITH TIME ZONE NOT NULL,
    PRIMARY KEY (job_type, schedule_key, fire_at)
);

CREATE TABLE async_task_schema (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);

ALTER TABLE async_task_attempts SET (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000, autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0);

CREATE SEQUENCE IF NOT EXISTS sq_async_task_attempts_order OWNED BY async_task_attempts.seq;

INSERT INTO async_task_schema (version) VALUES (6);

COMMIT;
