"""One file a command. Each imports what it needs when it is asked for, so that `async-task --help` needs none of it."""
