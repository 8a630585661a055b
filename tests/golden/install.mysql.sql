CREATE TABLE async_task_attempts (
    id CHAR(32) NOT NULL,
    status VARCHAR(16) NOT NULL,
    target VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    method_name VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    method_args LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    encryptor VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    idempotence_token VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    queue VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    priority SMALLINT NOT NULL,
    order_key VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    seq BIGINT,
    released BOOL NOT NULL,
    arrived BOOL,
    order_slot VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin GENERATED ALWAYS AS (CASE WHEN status = 'pending' AND released THEN order_key END) STORED,
    num_attempts INTEGER NOT NULL,
    num_errors INTEGER NOT NULL,
    num_crashes INTEGER NOT NULL,
    num_losses INTEGER NOT NULL DEFAULT '0',
    max_attempts SMALLINT,
    scheduled_at DATETIME(6),
    due_at DATETIME(6) NOT NULL,
    claim_id CHAR(32),
    claimed_by VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    lease_until DATETIME(6),
    expires_at DATETIME(6),
    attempted_at DATETIME(6),
    completed_at DATETIME(6),
    last_error LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    created_at DATETIME(6) NOT NULL,
    updated_at DATETIME(6) NOT NULL,
    trace_context VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    call_settings LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
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

CREATE INDEX ix_async_task_attempts_arrived ON async_task_attempts (status, arrived);

CREATE INDEX ix_async_task_attempts_expiry ON async_task_attempts (status, expires_at);

CREATE INDEX ix_async_task_attempts_keyed ON async_task_attempts (status, order_key, seq);

CREATE INDEX ix_async_task_attempts_lease ON async_task_attempts (lease_until);

CREATE INDEX ix_async_task_attempts_suspect ON async_task_attempts (status, num_crashes, num_losses);

CREATE INDEX ix_async_task_attempts_waiting ON async_task_attempts (status, released, queue, priority, due_at, id);

CREATE UNIQUE INDEX uq_async_task_attempts_order ON async_task_attempts (order_slot);

CREATE UNIQUE INDEX uq_async_task_attempts_token ON async_task_attempts (target, method_name, idempotence_token);

CREATE TABLE async_task_job_events (
    id BIGINT NOT NULL AUTO_INCREMENT,
    job_type VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    job_id VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    kind VARCHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    num_attempt INTEGER,
    actor VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    message LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    detail LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    created_at DATETIME(6) NOT NULL,
    fingerprint VARCHAR(16) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    PRIMARY KEY (id)
);

CREATE INDEX ix_async_task_job_events_fingerprint ON async_task_job_events (job_type, fingerprint, id);

CREATE INDEX ix_async_task_job_events_job ON async_task_job_events (job_type, job_id, id);

CREATE TABLE async_task_workers (
    name VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    host VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    pid INTEGER NOT NULL,
    process_started VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    started_at DATETIME(6) NOT NULL,
    beat_at DATETIME(6) NOT NULL,
    kind VARCHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    job_type VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    asleep BOOL NOT NULL DEFAULT '0',
    about LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    PRIMARY KEY (name)
);

CREATE TABLE async_task_queues (
    name VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    paused_at DATETIME(6),
    paused_by VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    pause_reason LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    max_running INTEGER,
    rate DOUBLE,
    burst INTEGER,
    tokens DOUBLE,
    refilled_at DATETIME(6),
    PRIMARY KEY (name)
);

CREATE TABLE async_task_schedules (
    job_type VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    schedule_key VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    rule LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    decided_until DATETIME(6) NOT NULL,
    last_attempt_id CHAR(32),
    paused_at DATETIME(6),
    paused_by VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    pause_reason LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    PRIMARY KEY (job_type, schedule_key)
);

CREATE TABLE async_task_occurrences (
    job_type VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    schedule_key VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    fire_at DATETIME(6) NOT NULL,
    status VARCHAR(16) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    reason LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    attempt_id CHAR(32),
    created_at DATETIME(6) NOT NULL,
    PRIMARY KEY (job_type, schedule_key, fire_at)
);

CREATE TABLE async_task_schema (
    version INTEGER NOT NULL,
    PRIMARY KEY (version)
);

INSERT INTO async_task_schema (version) VALUES (7);
