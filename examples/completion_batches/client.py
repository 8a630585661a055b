"""The client of the provider, with the standard library alone."""

import http.client
import json
import urllib.error
import urllib.request
from typing import Any

from completion_batches.settings import settings

TIMEOUT = 10
"""The seconds for which one request may wait: nothing else ends one that hangs."""

# Without a proxy: the provider of this example is on this machine.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Unavailable(Exception):
    """The provider is overloaded or away. It will answer later."""


class Refused(Exception):
    """The provider has refused the request."""


def create_batch(prompts: dict[str, str], *, idempotency_key: str) -> str:
    """The provider's id of a batch of these prompts. The same key never makes a second batch."""
    created: str = _ask("POST", "/batches", {"prompts": prompts}, {"Idempotency-Key": idempotency_key})["id"]
    return created


def batch_status(batch: str) -> str:
    """ "in_progress", "ended" or "canceled"."""
    status: str = _ask("GET", f"/batches/{batch}")["status"]
    return status


def batch_results(batch: str) -> dict[str, str]:
    """The answers of a batch that has ended, by the keys of its prompts."""
    results: dict[str, str] = _ask("GET", f"/batches/{batch}/results")["results"]
    return results


def cancel_batch(batch: str) -> None:
    _ask("DELETE", f"/batches/{batch}")


def _ask(method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> Any:
    request = urllib.request.Request(  # noqa: S310 - the operator sets the address
        settings.provider_url + path,
        data=None if body is None else json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {settings.provider_key.get_secret_value()}", **(headers or {})},
        method=method,
    )
    try:
        with _opener.open(request, timeout=TIMEOUT) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            said = f"{error.code} {json.load(error)['error']}"
        raise (Unavailable if error.code >= 500 else Refused)(said) from None
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(f"no answer: {error}") from None
