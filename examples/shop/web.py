"""The web process of the shop: it takes orders, and writes down their calls, which workers make.

    python -m shop.web --port 8000

POST /orders {"customer": "Ada", "amount": 1990}   201 with the order; its calls commit with it
GET /orders/1001                                   the order; "paid" as soon as a worker has made its calls
GET /healthz                                       200 if the database can be used, else 503; what `health` finds

SIGTERM lets running requests finish, and ends it with 0. It logs one JSON object for each request.
"""

import argparse
import datetime as dt
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterable
from http import HTTPStatus
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError, OperationalError

from shop.app import Session, outbox
from shop.models import Order
from shop.orders import place_order

Answer = tuple[HTTPStatus, dict[str, Any]]
LONGEST_BODY = 10_000
LONGEST_CUSTOMER = 100
LARGEST = 2**31 - 1
"""The largest integer that the columns hold."""
LIKE = 'an order is written like {"customer": "Ada", "amount": 1990}'
TRIES = 5
"""How often an order is placed again, because another process has taken its number meanwhile."""
PLACING = threading.Lock()
"""Numbers are given one after the other: the threads of this process need not take them from each other."""


def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """The WSGI application."""
    try:
        status, body = _answer(environ)
    except OperationalError:  # /healthz says why
        status, body = HTTPStatus.SERVICE_UNAVAILABLE, {"error": "the database cannot be used: try again"}
    text = json.dumps(body).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(text)))]
    start_response(f"{status.value} {status.phrase}", headers)
    return [text]


def _answer(environ: dict[str, Any]) -> Answer:
    match environ["REQUEST_METHOD"], environ["PATH_INFO"].strip("/").split("/"):
        case "POST", ["orders"]:
            return _place(environ)
        case "GET", ["orders", number] if number.isdecimal():
            return _show(number)
        case "GET", ["healthz"]:
            return _health()
    return HTTPStatus.NOT_FOUND, {"error": "POST /orders, GET /orders/NUMBER or GET /healthz"}


def _place(environ: dict[str, Any]) -> Answer:
    try:
        customer, amount = _wish(environ)
    except (ValueError, KeyError, TypeError, RecursionError):
        return HTTPStatus.BAD_REQUEST, {"error": LIKE}
    except TimeoutError:
        return HTTPStatus.REQUEST_TIMEOUT, {"error": "the request has not arrived as a whole"}
    for _ in range(TRIES):
        try:
            with PLACING, Session.begin() as session:
                order = place_order(session, customer, amount)
                session.flush()
                return HTTPStatus.CREATED, _as_data(order)
        except IntegrityError:
            continue
    return HTTPStatus.SERVICE_UNAVAILABLE, {"error": "too many orders at once: try again"}


def _wish(environ: dict[str, Any]) -> tuple[str, int]:
    """The customer and the amount. Raises ValueError, KeyError, TypeError or RecursionError for what is no order."""
    length = min(max(int(environ.get("CONTENT_LENGTH") or 0), 0), LONGEST_BODY)
    wish = json.loads(environ["wsgi.input"].read(length))
    customer, amount = wish["customer"], wish["amount"]
    if not isinstance(customer, str) or type(amount) is not int:
        raise TypeError(LIKE)
    customer.encode()  # refuses half of a surrogate pair, which no database stores
    if not 0 < len(customer) <= LONGEST_CUSTOMER or "\0" in customer or not 0 < amount <= LARGEST:
        raise ValueError(LIKE)
    return customer, amount


def _show(number: str) -> Answer:
    order = None
    if len(number) <= len(str(LARGEST)) and int(number) <= LARGEST:
        with Session() as session:
            order = session.scalar(select(Order).where(Order.number == int(number)))
    if order is None:
        return HTTPStatus.NOT_FOUND, {"error": f"there is no order {number}"}
    return HTTPStatus.OK, _as_data(order)


def _health() -> Answer:
    """A late backlog is no reason to send this process no requests; a database that is away is."""
    found = outbox.health()
    is_ready = found.checks[0].name == "database" and found.checks[0].state == "ok"
    body = {"state": found.state, "checks": {one.name: one.words for one in found.checks}}
    return HTTPStatus.OK if is_ready else HTTPStatus.SERVICE_UNAVAILABLE, body


def _as_data(order: Order) -> dict[str, Any]:
    return {"number": order.number, "customer": order.customer, "amount": order.amount, "status": order.status}


class Handler(WSGIRequestHandler):
    """Logs as workers and clocks do with --log-format json."""

    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        domain = os.environ.get("ASYNC_TASK_DOMAIN") or socket.gethostname()
        line = {
            "@timestamp": dt.datetime.now(dt.UTC).isoformat(timespec="milliseconds"), "level": "INFO",
            "message": format % args, "domain": domain, "service": "web",
        }  # fmt: skip
        print(json.dumps(line), file=sys.stderr, flush=True)


class Server(ThreadingMixIn, WSGIServer):
    """A thread for each request. The end of the server waits for the running ones."""

    daemon_threads = False


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="python -m shop.web", description="The web process of the example shop.")
    options.add_argument("--host", default="127.0.0.1", help="0.0.0.0 in a container")
    options.add_argument("--port", type=int, default=8000, help="0 takes any free port")
    return options


def main() -> None:
    """Serve until SIGTERM or SIGINT."""
    given = parser().parse_args()
    with Server((given.host, given.port), Handler) as server:
        server.set_app(application)
        for one in (signal.SIGTERM, signal.SIGINT):
            # On a thread: `shutdown` waits for the loop that this handler interrupts.
            signal.signal(one, lambda *_: threading.Thread(target=server.shutdown).start())
        print(f"http://{given.host}:{server.server_address[1]}", flush=True)
        server.serve_forever(poll_interval=0.1)


if __name__ == "__main__":
    main()
