"""How a worker learns that something is due."""
