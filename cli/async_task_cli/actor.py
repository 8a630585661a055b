"""The actor: the person or program that runs the command line, for the events that its verbs write."""

import getpass
import os
import socket
from collections.abc import Callable
from typing import TypeVar

import click

from async_task import ConfigurationError, acting

ACTOR = "ASYNC_TASK_ACTOR"
F = TypeVar("F", bound=Callable[..., object])


def named_actor(option: str | None) -> tuple[str, str]:
    """The actor, and where it comes from: an option, the environment, else user@host."""
    if option is not None:
        return option, "--actor"
    if from_environment := os.environ.get(ACTOR):
        return from_environment, ACTOR
    return f"{_user()}@{socket.gethostname()}", "user@host"


def actor_of(option: str | None) -> str:
    """The actor. Raises ConfigurationError, naming where it comes from, for one that no event can hold."""
    actor, source = named_actor(option)
    if (problem := problem_of(actor)) is not None:
        raise ConfigurationError(f"{source}: {problem}")
    return actor


def problem_of(actor: str) -> str | None:
    """Why no event can hold this actor; None where one can."""
    try:
        with acting(actor):
            return None
    except ConfigurationError as error:
        return str(error)


def as_actor(command: F) -> F:
    """`--actor`; the command is called with `actor=`, None where it was left out."""
    words = f"Your name, for the attempt's events [default: {ACTOR}, else user@host]."
    return click.option("--actor", metavar="NAME", help=words, callback=_checked)(command)


def _checked(ctx: click.Context, param: click.Parameter, actor: str | None) -> str | None:
    problem = None if actor is None else problem_of(actor)
    if problem is not None:
        raise click.BadParameter(problem)
    return actor


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # in a container whose user has a number and no name
        return f"uid-{os.getuid()}"
