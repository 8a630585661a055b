"""A shop with FastAPI and an AsyncSession, and the same with a Session."""
