"""How `async-task web` finds out who the people are whom it serves: from options and the environment."""

import ipaddress
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from async_task import ConfigurationError
from async_task_cli.actor import actor_of
from async_task_cli.faults import CONFIGURATION, Refusal

BASIC, TOKEN, PROXY_HEADER = "basic", "token", "proxy-header"
USERS, SECRET, READERS = "ASYNC_TASK_WEB_USERS", "ASYNC_TASK_WEB_TOKEN", "ASYNC_TASK_WEB_READERS"
ANYBODY = "anybody"
"""The actor of --insecure-open."""


@dataclass(frozen=True, slots=True)
class Identity:
    """The options that say it."""

    auth: str | None
    is_open: bool
    proxy_header: str | None
    proxies: tuple[str, ...]
    actor: str | None

    def check(self, host: str) -> None:
        """Raises UsageError for options that contradict each other, or that leave this host open to everybody."""
        if self.auth is not None and self.is_open:
            raise click.UsageError("--auth and --insecure-open exclude each other")
        if self.auth is None and not self.is_open and not _is_loopback(host):
            raise click.UsageError(f"--host {host} can be reached from elsewhere: give --auth too, or --insecure-open")
        if self.auth == PROXY_HEADER and not self.proxy_header:
            raise click.UsageError("--auth proxy-header needs --proxy-header NAME, the header that holds the user")
        if self.auth != PROXY_HEADER and (self.proxy_header is not None or self.proxies):
            raise click.UsageError("--proxy-header and --trusted-proxy are for --auth proxy-header")
        if self.auth is not None and self.actor is not None:
            raise click.UsageError("--actor is for use without --auth, with which people act in their own names")

    def authorize(self) -> Callable[[Any], Any]:
        """Says who is behind a request, for `AsyncTask.dashboard`. Raises Refusal, which repeats no secret."""
        # Imported here, because it needs the extra.
        from async_task.web.security import authentication
        from async_task.web.security.users import names_in, users_in

        readers = names_in(os.environ.get(READERS, ""))
        try:
            match self.auth:
                case "basic":
                    return authentication.Basic(users_in(_secret(USERS)), readers)
                case "token":
                    return authentication.Token(_secret(SECRET).strip(), readers)
                case "proxy-header":
                    proxies = self.proxies or authentication.LOOPBACK
                    return authentication.ProxyHeader(self.proxy_header or "", proxies, readers)
        except ConfigurationError as error:
            raise Refusal(f"--auth {self.auth}: {error}", CONFIGURATION) from error
        if self.is_open:
            return authentication.Anybody(self.actor or ANYBODY)
        return authentication.Loopback(actor_of(self.actor))


def read_password() -> str:
    """A password from the terminal, which is asked for twice, or the first line of standard input."""
    if sys.stdin.isatty():
        return str(click.prompt("Password", hide_input=True, confirmation_prompt=True, err=True))
    return sys.stdin.readline().rstrip("\r\n")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _secret(name: str) -> str:
    """The text of the environment variable, or of the file that the variable NAME_FILE names. Raises
    ConfigurationError."""
    if text := os.environ.get(name):
        return text
    file = os.environ.get(f"{name}_FILE")
    if not file:
        raise ConfigurationError(f"set {name}, or {name}_FILE to the path of a file")
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{name}_FILE: {file} cannot be read ({type(error).__name__})") from error
