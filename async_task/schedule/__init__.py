"""The schedule: what is to be enqueued at which times, and the clock that enqueues it."""
