"""`async-task demo`: a shop, its database and its warehouse, on stage. What is said is checked."""
