"""What changes something: one verb for one job, or for many after a preview."""
