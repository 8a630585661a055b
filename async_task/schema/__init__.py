"""The tables: columns, indexes, states and their changes, versions, events."""
