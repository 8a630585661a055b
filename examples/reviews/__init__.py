"""Claim reviews that are their own jobs."""
