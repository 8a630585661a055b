"""The SQL that touches the attempts table: claim, settle, sweep, order, limit."""
