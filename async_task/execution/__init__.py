"""How one call is made, and how its outcome is written."""
