"""The command line of async-task: it parses, makes one call of the library, and prints."""
