"""The board at which reviews are established, played by this process: it refuses a claim once."""

refused: set[str] = set()


class Unavailable(Exception):
    """The board does not answer."""


def establish(claim: str, idempotency_key: str) -> str:
    if claim not in refused:
        refused.add(claim)
        raise Unavailable(f"no answer about {claim}")
    return f"established as {idempotency_key}"
