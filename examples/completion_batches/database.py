"""The engine of the example and its sessions."""

from sqlalchemy import create_engine
from sqlalchemy.orm import sessionmaker

from completion_batches.settings import settings

engine = create_engine(settings.database_url, hide_parameters=True)
SessionLocal = sessionmaker(engine)
