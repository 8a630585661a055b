"""The databases: what they do differently, engines and lanes, errors, transactions."""
