DROP INDEX ix_async_task_attempts_waiting;

DROP INDEX ix_async_task_attempts_expiry;

CREATE INDEX ix_async_task_attempts_waiting ON async_task_attempts (status, released, queue, priority, due_at, id) WHERE status = 'pending' AND claim_id IS NULL AND released = 1;

CREATE INDEX ix_async_task_attempts_expiry ON async_task_attempts (status, expires_at) WHERE status = 'pending' AND expires_at IS NOT NULL;

ALTER TABLE async_task_workers ADD COLUMN kind VARCHAR(32);

ALTER TABLE async_task_workers ADD COLUMN job_type VARCHAR(128);

ALTER TABLE async_task_schema DROP COLUMN installed_at;

UPDATE async_task_schema SET version=2;
