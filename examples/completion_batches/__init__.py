"""Batches of LLM completions: submitted in the caller's transaction, polled at a provider, fetched and handled."""
