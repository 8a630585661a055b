"""A shop with SQLModel."""
