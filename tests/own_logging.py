"""A module of an application that sets up its logging when it is imported."""

import logging

logging.basicConfig(level=logging.INFO, format="MINE %(message)s")
