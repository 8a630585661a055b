"""Child processes: for isolated calls and for suspects."""
