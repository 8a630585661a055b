ALTER TABLE async_task_attempts ADD COLUMN call_settings LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

UPDATE async_task_schema SET version=7;
