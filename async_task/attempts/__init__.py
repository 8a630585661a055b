"""The attempt: its model, how callers create it, and what people do to it."""
