"""A view as HTML, JSON or CSV."""
