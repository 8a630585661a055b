"""Reading attempts: lists, one attempt and why it waits, what is stuck, failures, figures. It changes no row."""
