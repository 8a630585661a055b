CREATE TABLE async_task_schedules (
    job_type VARCHAR(128) NOT NULL,
    schedule_key VARCHAR(255) NOT NULL,
    rule TEXT NOT NULL,
    decided_until DATETIME NOT NULL,
    last_attempt_id CHAR(32),
    paused_at DATETIME,
    paused_by VARCHAR(255),
    pause_reason TEXT,
    PRIMARY KEY (job_type, schedule_key)
);

CREATE TABLE async_task_occurrences (
    job_type VARCHAR(128) NOT NULL,
    schedule_key VARCHAR(255) NOT NULL,
    fire_at DATETIME NOT NULL,
    status VARCHAR(16) NOT NULL,
    reason TEXT,
    attempt_id CHAR(32),
    created_at DATETIME NOT NULL,
    PRIMARY KEY (job_type, schedule_key, fire_at)
);

UPDATE async_task_schema SET version=5;
