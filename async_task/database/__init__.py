"""What the databases do differently, and the connections that this library makes."""
