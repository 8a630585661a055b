"""How many attempts a lane takes at once: as many as lately fitted into the time that it may keep them. Pure."""

MOST = 500
AT_HAND = 0.02
"""Seconds of work that a lane may have claimed and not begun."""


class Portion:
    """Learns from each round of calls. Grows by doubling at most, shrinks at once. `settle_within`: in seconds."""

    def __init__(self, settle_within: float) -> None:
        self._settle_within = settle_within
        self._seconds = AT_HAND
        """What one call took, lately; at first it is taken for a slow one."""

    def note(self, number: int, seconds: float) -> None:
        """So many calls took so long, together."""
        self._seconds = max(seconds / number, self._seconds / 2, 1e-6)

    @property
    def to_claim(self) -> int:
        return self._fitting(max(self._settle_within, AT_HAND))

    @property
    def to_settle(self) -> int:
        """How many calls may share a commit, if nothing unusual happens."""
        return self._fitting(self._settle_within)

    def _fitting(self, seconds: float) -> int:
        return max(1, min(MOST, int(seconds / self._seconds)))
