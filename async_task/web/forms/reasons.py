"""Why somebody changes something."""

from starlette.datastructures import FormData

from async_task.web.security.refusal import Refused

LONGEST_REASON = 2_000


def reason_of(form: FormData, *, is_needed: bool) -> str | None:
    """Why, for the record. Raises Refused without one where it is needed."""
    reason = str(form.get("reason") or "").strip()
    if len(reason) > LONGEST_REASON:
        raise Refused(400, f"A reason has at most {LONGEST_REASON:,} characters.")
    if is_needed and not reason:
        raise Refused(400, "Say why: a reason is needed for this.")
    return reason or None
