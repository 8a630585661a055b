"""`python -m async_task` is `async-task`."""

import sys

from async_task_cli.main import main

if __name__ == "__main__":
    sys.exit(main())
