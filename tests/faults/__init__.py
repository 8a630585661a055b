"""Faults from outside: real workers and producers over a private database, while processes die, freeze and stop, and
the database goes away, loses connections or holds rows. `make faults` runs it; see docs/reliability.md."""
