"""`async-task completion`: the script that completes commands, options and choices in a shell."""

import click
from click.shell_completion import get_completion_class

from async_task_cli.options import SETTINGS, debugging
from async_task_cli.shells import SHELLS

LINES = "\n".join(f"  {shell:<11} {line}" for shell, line in SHELLS.items())


@click.command("completion", context_settings=SETTINGS, epilog=f"\b\nFor good:\n{LINES}")
@click.argument("shell", type=click.Choice(list(SHELLS)))
@debugging
def completion(shell: str) -> None:
    """Print the script that completes commands, options and choices in your shell. It never asks a database."""
    from async_task_cli.main import COMPLETE, NAME, cli

    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, NAME, COMPLETE)
    # Not script.source(): for bash that asks the bash of this machine, which need not be the one that reads it.
    click.echo(script.source_template % script.source_vars())
