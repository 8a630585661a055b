"""A small shop that uses async-task as any application would: orders, their outbox, and a warehouse to call."""
