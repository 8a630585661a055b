"""One module for each system: async-task, bare psycopg, and the peers."""
