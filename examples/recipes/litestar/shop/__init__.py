"""A shop with Litestar and Advanced Alchemy."""
