"""Who may see and do what: access, authentication, and the guard around everything."""
