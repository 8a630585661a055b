DROP INDEX IF EXISTS ix_async_task_attempts_waiting_all ON async_task_attempts;

DROP INDEX IF EXISTS ix_async_task_attempts_expiry_all ON async_task_attempts;

CREATE INDEX IF NOT EXISTS ix_async_task_attempts_waiting ON async_task_attempts (status, released, queue, priority, due_at, id);

CREATE INDEX IF NOT EXISTS ix_async_task_attempts_expiry ON async_task_attempts (status, expires_at);

ALTER TABLE async_task_workers ADD COLUMN IF NOT EXISTS kind VARCHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin;

ALTER TABLE async_task_workers ADD COLUMN IF NOT EXISTS job_type VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_nopad_bin;

ALTER TABLE async_task_schema DROP COLUMN IF EXISTS installed_at;

UPDATE async_task_schema SET version=2;
