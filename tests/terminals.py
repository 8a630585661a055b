"""A terminal that a test can resize and read."""

import contextlib
import os
import pty

from elsewhere import await_


def heard_to_the_end(ours: int) -> str:
    """What is left to hear of a terminal whose other end is closed. One read returns a part of it."""
    said = b""
    with contextlib.suppress(OSError):  # nothing is left
        while chunk := os.read(ours, 10_000):
            said += chunk
    os.close(ours)
    return said.decode()


class Terminal:
    """What a process prints on a terminal."""

    def __init__(self) -> None:
        self.ours, self.theirs = pty.openpty()
        self.said = ""

    def await_words(self, words: str) -> None:
        await_(lambda: words in self._hear(), f"{words!r} is printed")

    def heard_after(self, words: str) -> str:
        """What is printed behind the first place of `words`, so far."""
        return self._hear().partition(words)[2]

    def close(self) -> str:
        os.close(self.theirs)
        self.said += heard_to_the_end(self.ours)
        return self.said

    def _hear(self) -> str:
        os.set_blocking(self.ours, False)
        with contextlib.suppress(BlockingIOError):
            self.said += os.read(self.ours, 10_000).decode()
        os.set_blocking(self.ours, True)
        return self.said
