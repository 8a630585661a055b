"""A shop with Flask, Flask-SQLAlchemy and Flask-Migrate."""

import os

from flask import Flask
from flask_migrate import Migrate

from shop import views
from shop.models import db

migrate = Migrate()


def create_app() -> Flask:
    app = Flask(__name__)
    app.config.from_mapping(
        SQLALCHEMY_DATABASE_URI=os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg://localhost/shop"),
        SHOP_WAREHOUSE="Rotterdam",
    )
    db.init_app(app)
    migrate.init_app(app, db)
    app.register_blueprint(views.orders)
    return app
