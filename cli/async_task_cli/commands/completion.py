"""`async-task completion`: the script that completes commands, options and choices in a shell."""

import click
from click.shell_completion import get_completion_class

from async_task_cli.options import SETTINGS, debugging

SHELLS = {
    "bash": """add to ~/.bashrc:  eval "$(async-task completion bash)\"""",
    "zsh": """add to ~/.zshrc:  eval "$(async-task completion zsh)\"""",
    "fish": "add to ~/.config/fish/config.fish:  async-task completion fish | source",
}
"""The shells, and how to have completion in each new session."""
LINES = "\n".join(f"  {shell:<6} {line}" for shell, line in SHELLS.items())


@click.command("completion", context_settings=SETTINGS, epilog=f"\b\nIn every new session:\n{LINES}")
@click.argument("shell", type=click.Choice(list(SHELLS)))
@debugging
def completion(shell: str) -> None:
    """Print the script that completes commands, options and choices in your shell. Completion needs no database."""
    from async_task_cli.main import COMPLETE, NAME, cli

    found = get_completion_class(shell)
    assert found is not None
    script = found(cli, {}, NAME, COMPLETE)
    # Not script.source(): for bash that asks the bash of this machine, which need not be the one that reads it.
    click.echo(script.source_template % script.source_vars())
