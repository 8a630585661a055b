"""Waking workers when attempts become due: in this process, and by PostgreSQL's NOTIFY."""
