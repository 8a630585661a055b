"""`async-task demo`: a shop with its database and its warehouse. The demo checks everything that it prints."""
