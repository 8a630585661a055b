"""What a row holds, and how it may change."""
