"""A Django project without a page, on the database of the other recipes."""

import importlib.util
import os

from sqlalchemy import make_url

url = make_url(os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg://localhost/shop"))
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends." + ("sqlite3" if url.drivername.startswith("sqlite") else "postgresql"),
        "NAME": url.database,
        "USER": url.username or "",
        "PASSWORD": url.password or "",
        "HOST": url.host or url.query.get("host") or "",
        "PORT": url.port or url.query.get("port") or "",
    }
}
IS_DJANGO_6 = importlib.util.find_spec("django.tasks") is not None
INSTALLED_APPS = [*([] if IS_DJANGO_6 else ["django_tasks"]), "django_tasks_db"]
TASKS = {"default": {"BACKEND": "django_tasks_db.DatabaseBackend"}}
USE_TZ = True
