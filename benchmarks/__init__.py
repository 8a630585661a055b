"""What is promised about speed, measured against peers and against bare psycopg: `make bench`."""
