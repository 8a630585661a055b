"""The application: `flask --app wsgi run`, `gunicorn wsgi:app`, and `async-task worker` all find it here."""

import os
import secrets

from a2wsgi import ASGIMiddleware
from starlette.requests import Request
from werkzeug.middleware.dispatcher import DispatcherMiddleware

from async_task import Access, AsyncTask
from shop import create_app
from shop.models import Attempt, db

app = create_app()
outbox = AsyncTask(db, model=Attempt, around=lambda facts: app.app_context())


def authorize(request: Request) -> Access:
    given, token = request.headers.get("Authorization", ""), os.environ.get("SHOP_DASHBOARD_TOKEN", "")
    is_known = token and secrets.compare_digest(given.encode(), f"Bearer {token}".encode())
    return Access.full("operator") if is_known else Access.none()


app.wsgi_app = DispatcherMiddleware(app.wsgi_app, {"/jobs": ASGIMiddleware(outbox.dashboard(authorize=authorize))})
