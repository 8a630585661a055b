"""How many attempts a lane takes at once: as many as lately fitted into the time that it may keep them. Pure."""

MOST = 500
AT_HAND = 0.02
"""Seconds of work that a lane may have claimed and not begun."""


class Portion:
    """A number that learns: doubled when so many took at most half of `budget` (seconds), twice when at most an eighth,
    and halved when they took more than all of it. Not from how long one of them took: on a busy machine that is mostly
    waiting."""

    def __init__(self, budget: float) -> None:
        self._budget = budget
        self.number = 1

    def note(self, number: int, seconds: float) -> None:
        """So many were done, together, in so long."""
        if seconds > self._budget:
            self.number = max(1, self.number // 2)
        elif number >= self.number and seconds <= self._budget / 2:
            self.number = min((2 if seconds > self._budget / 8 else 4) * self.number, MOST)


class Portions:
    """Of one queue, on one lane: how many to claim, and how many may share a commit."""

    def __init__(self) -> None:
        self.to_claim = Portion(AT_HAND)
        self._to_settle: dict[float, Portion] = {}

    def to_settle(self, within: float) -> Portion:
        """Of those that are to be written within so many seconds."""
        if within not in self._to_settle:
            self._to_settle[within] = Portion(within)
        return self._to_settle[within]
