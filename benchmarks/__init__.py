"""Measure what is promised about speed beside other libraries and bare psycopg: `make bench`."""
