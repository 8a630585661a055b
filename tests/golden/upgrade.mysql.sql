ALTER TABLE async_task_attempts ADD COLUMN arrived BOOL;

CREATE INDEX ix_async_task_attempts_keyed ON async_task_attempts (status, order_key, seq);

CREATE INDEX ix_async_task_attempts_arrived ON async_task_attempts (status, arrived);

CREATE INDEX ix_async_task_attempts_suspect ON async_task_attempts (status, num_crashes);

ALTER TABLE async_task_workers ADD COLUMN asleep BOOL NOT NULL DEFAULT '0';

ALTER TABLE async_task_workers ADD COLUMN about LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin;

CREATE TABLE async_task_queues (
    name VARCHAR(64) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    paused_at DATETIME(6),
    paused_by VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    pause_reason LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    max_running INTEGER,
    rate DOUBLE,
    burst INTEGER,
    tokens DOUBLE,
    refilled_at DATETIME(6),
    PRIMARY KEY (name)
);

UPDATE async_task_schema SET version=3;
