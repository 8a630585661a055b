"""A shop that moves from Celery to the outbox, task by task."""
