BEGIN;

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

UPDATE async_task_schema SET version=5;

COMMIT;
