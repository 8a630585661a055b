"""What runs, when, in which thread and process."""
