"""What `async-task install --model PATH --jobs PATH` writes into a project: `write(plan(Wish(...)))`."""

from async_task_cli.scaffold.files import Planned, Written, write
from async_task_cli.scaffold.plans import Wish, plan

__all__ = ["Planned", "Wish", "Written", "plan", "write"]
