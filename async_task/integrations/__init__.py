"""What joins async-task to other libraries. Each module needs an extra, and is imported by whoever wants it."""
