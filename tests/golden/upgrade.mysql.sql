DROP INDEX ix_async_task_attempts_waiting_all ON async_task_attempts;

DROP INDEX ix_async_task_attempts_expiry_all ON async_task_attempts;

CREATE INDEX ix_async_task_attempts_waiting ON async_task_attempts (status, released, queue, priority, due_at, id);

CREATE INDEX ix_async_task_attempts_expiry ON async_task_attempts (status, expires_at);

ALTER TABLE async_task_workers ADD COLUMN kind VARCHAR(32) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin;

ALTER TABLE async_task_workers ADD COLUMN job_type VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin;

ALTER TABLE async_task_schema DROP COLUMN installed_at;

UPDATE async_task_schema SET version=2;
