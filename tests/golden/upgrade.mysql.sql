CREATE TABLE async_task_schedules (
    job_type VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    schedule_key VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    rule LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    decided_until DATETIME(6) NOT NULL,
    last_attempt_id CHAR(32),
    paused_at DATETIME(6),
    paused_by VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin,
    pause_reason LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    PRIMARY KEY (job_type, schedule_key)
);

CREATE TABLE async_task_occurrences (
    job_type VARCHAR(128) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    schedule_key VARCHAR(255) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    fire_at DATETIME(6) NOT NULL,
    status VARCHAR(16) CHARACTER SET utf8mb4 COLLATE utf8mb4_0900_bin NOT NULL,
    reason LONGTEXT CHARACTER SET utf8mb4 COLLATE utf8mb4_bin,
    attempt_id CHAR(32),
    created_at DATETIME(6) NOT NULL,
    PRIMARY KEY (job_type, schedule_key, fire_at)
);

UPDATE async_task_schema SET version=5;
