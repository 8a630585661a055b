DROP INDEX ix_async_task_attempts_waiting_all ON async_task_attempts;

DROP INDEX ix_async_task_attempts_expiry_all ON async_task_attempts;

CREATE INDEX ix_async_task_attempts_waiting ON async_task_attempts (status, released, queue, priority, due_at, id);

CREATE INDEX ix_async_task_attempts_expiry ON async_task_attempts (status, expires_at);

ALTER TABLE async_task_schema DROP COLUMN installed_at;

UPDATE async_task_schema SET version=2;
