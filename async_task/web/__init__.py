"""The dashboard: an ASGI application on the reading API and the verbs, with no SQL and no state of its own."""
