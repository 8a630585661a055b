"""One file a system: ourselves, bare psycopg, and the peers."""
