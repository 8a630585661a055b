"""The application of `async-task worker` when a supervisor is measured, on BENCH_URL with BENCH_BOARD."""

import os
import pathlib

from async_task import AsyncTask
from benchmarks.board import Board
from benchmarks.systems import ours

ours.boards.append(Board(pathlib.Path(os.environ["BENCH_BOARD"])))
outbox = AsyncTask(ours.with_driver(os.environ["BENCH_URL"]))
