"""What may be called, and by which rules."""
