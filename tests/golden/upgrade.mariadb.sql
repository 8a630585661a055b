ALTER TABLE async_task_job_events ADD COLUMN IF NOT EXISTS fingerprint VARCHAR(16) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin;

CREATE INDEX IF NOT EXISTS ix_async_task_job_events_fingerprint ON async_task_job_events (job_type, fingerprint, id);

UPDATE async_task_schema SET version=6;
