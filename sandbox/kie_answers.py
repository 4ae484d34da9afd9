"""What the simulated KIE.AI says: its JSON, and the codes and words of its refusals."""

from __future__ import annotations

from typing import Any

from sandbox.faults import Fault
from sandbox.journal import Entry
from sandbox.replies import Reply, answered

# UPSTREAMS 2.2, where it quotes them; those of 404, 455 and 505 are ours.
WORDS = {
    400: "taskId parameter is required",
    401: "You do not have access permissions",
    402: (
        "Credits insufficient : Your current balance isn't enough to run this request. "
        "Please top up to continue."
    ),
    404: "Not Found",
    422: "recordInfo is null",
    429: "Your call frequency is too high. Please try again later.",
    455: "The system is currently undergoing maintenance",
    500: "Internal Error, Please try again later.",
    505: "This feature is currently disabled",
}
UNKNOWN_MODEL = "The model name you specified is not supported."
PAUSED = "This interface is temporarily paused"
UNKNOWN_FILE = "The file does not exist or was not generated here"  # the words are ours
ENDED = {
    "success": (200, "Playground task completed successfully."),
    "fail": (501, "Playground task failed."),
}


class Refused(Exception):  # noqa: N818 - the word is already a failure
    """An answer whose code is not 200; all but one come with HTTP 200 (UPSTREAMS 0, finding 2)."""

    def __init__(self, code: int, message: str = "") -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message or WORDS.get(code, WORDS[500])
        self.status = 429 if code == 429 else 200

    @property
    def body(self) -> dict[str, Any]:
        """What is answered."""
        return {"code": self.code, "msg": self.message, "data": None}


def said(data: Any, entry: Entry) -> Reply:
    """Return the answer of a call that went well."""
    return answered({"code": 200, "msg": "success", "data": data}, [entry])


def refused(refusal: Refused, entry: Entry) -> Reply:
    """Return the answer of a call that did not, and note its code."""
    entry.error = str(refusal.code)
    return answered(refusal.body, [entry], refusal.status)


def worded(fault: Fault) -> tuple[Any, int]:
    """Return the body and the HTTP status of the error that *fault* asks for by its code."""
    refusal = Refused(int(fault.code or 500), fault.description)
    return refusal.body, fault.status or refusal.status
