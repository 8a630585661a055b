"""The pages: each a function that reads what it shows by the reading API, and its columns."""
