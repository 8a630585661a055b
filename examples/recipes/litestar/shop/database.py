"""The configuration of Advanced Alchemy, from which Litestar and the outbox have their sessions."""

import os

from advanced_alchemy.extensions.litestar import AlembicAsyncConfig, SQLAlchemyAsyncConfig

alchemy = SQLAlchemyAsyncConfig(
    connection_string=os.environ.get("SHOP_DATABASE_URL", "postgresql+psycopg://localhost/shop"),
    alembic_config=AlembicAsyncConfig(script_location="migrations", script_config="alembic.ini"),
)
