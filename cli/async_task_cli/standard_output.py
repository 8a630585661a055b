"""Standard output whose reader may go away, as behind `| head -1`."""

import os
import sys

import click


def tell(line: str) -> None:
    """Print what was done, at once. If nobody reads any more, what is still to be done is done without being told."""
    try:
        click.echo(line)
    except BrokenPipeError:
        close_output()


def close_output() -> None:
    """From now on it goes nowhere. Else the interpreter would print an error when it flushes at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
