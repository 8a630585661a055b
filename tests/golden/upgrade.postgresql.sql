BEGIN;

ALTER TABLE async_task_attempts ADD COLUMN call_settings TEXT;

UPDATE async_task_schema SET version=7;

COMMIT;
