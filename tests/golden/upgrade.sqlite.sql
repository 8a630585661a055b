ALTER TABLE async_task_job_events ADD COLUMN fingerprint VARCHAR(16);

CREATE INDEX ix_async_task_job_events_fingerprint ON async_task_job_events (job_type, fingerprint, id) WHERE fingerprint IS NOT NULL;

UPDATE async_task_schema SET version=6;
