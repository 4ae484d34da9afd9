"""What the console says in plain words: waits, states and the steps of a job's story."""

from __future__ import annotations

# Why a job waits, by the reason that it is parked for, and what that means for the reader.
WAITS = {
    "Scheduled": "It was sent to run at this time.",
    "RateLimited": "The upstream asked us to slow down. It comes back by itself; no try is spent.",
    "CircuitOpen": "The upstream did not answer. It comes back when a test call gets through.",
    "Paused": "A person has paused this gate, or holds such jobs. It waits until that is over.",
    "CredentialHeld": "The credential was refused. It waits until there is another one.",
    "Unauthorized": "The credential was refused. It waits until there is another one.",
    "NotConfigured": "A setting, method or plan is missing. It waits until that is set up.",
    "BillingExhausted": "Our account there is empty. It is tried again every minute.",
    "Blocked": "The upstream has shut us out. Settle it with them.",
    "Pending": "It waits for a result that is not there yet, or for a job before it.",
    "OutcomeUnknown": "Its last call was not answered. It looks what became of it before it "
    "goes on.",
    "ServiceUnavailable": "The upstream failed. It is tried again, later each time.",
    "NetworkError": "The upstream could not be reached. It is tried again, later each time.",
    "DatabaseError": "Our database failed. It is tried again, later each time.",
    "InternalError": "Our own side failed. It is tried again, later each time.",
    "Unclassified": "A failure that nobody has met before. It is tried again a few times.",
}
WAITS_OTHERWISE = "It failed, and is tried again at this time."

GATES = {
    "closed": ("open for calls", "good"),
    "half_open": ("testing", "warn"),
    "open": ("upstream down", "bad"),
    "paused": ("paused", "warn"),
    "held": ("held", "bad"),
}  # a breaker's "closed" lets calls through, which no reader believes at night
GATE_MEANS = {
    "closed": "Calls go through, at the pace of its budget.",
    "half_open": "One call at a time is let through, to see whether the upstream is back.",
    "open": "It failed several times in a row. No call goes out; jobs are parked, none is lost. "
    "It is tried again by itself.",
    "paused": "A person keeps every call away. Jobs are parked until somebody resumes it.",
    "held": "It refuses our credential, or wants money. Calls go on when that is settled.",
}

STATES = {
    "open": ("open", "bad"),
    "replayed": ("sent again", "good"),
    "discarded": ("discarded", "calm"),
    "running": ("running", "accent"),
    "done": ("done", "good"),
    "stopped": ("stopped", "bad"),
    "cancelled": ("cancelled", "calm"),
    "cancelling": ("ending", "warn"),
    "completed": ("completed", "good"),
    "paid": ("being made", "accent"),
    "ready": ("to be sent", "accent"),
    "sending": ("being sent", "accent"),
    "sent": ("sent", "good"),
    "unconfirmed": ("unconfirmed", "bad"),
    "refunded": ("refunded", "calm"),
    "replay": ("will run", "good"),
    "skip": ("will not be sent", "warn"),
}

VIDEOS = {
    "paid": "It is paid for; KIE.AI is at it.",
    "ready": "It is made and fetched; its delivery is queued.",
    "sending": "Telegram is at it, or its gate is closed.",
    "sent": "It has arrived.",
    "unconfirmed": "It may have arrived: Telegram did not say. It stays paid for until somebody "
    "settles it. Ask the user, or press nothing: they have a button to have it sent again.",
    "refunded": "The credits are back; nothing is sent any more.",
}

CRAWLS = {
    "running": "A job is at it, or waits to go on.",
    "cancelling": "A person has asked it to end; it does so at its next checkpoint.",
    "cancelled": "It was ended by a person. A later crawl of this user goes on from there.",
    "completed": "It came to the last page.",
}

COMPENSATIONS = {
    "none": "Nothing had to be made good.",
    "needed": "What it had begun is still to be made good; that is sent within a minute.",
    "sent": "A job is on its way that makes good what it had begun.",
    "done": "What it had begun is made good.",
    "failed": "What it had begun could NOT be made good: something is owed, to a user perhaps. "
    "Replay the letter of its compensation first.",
}

# What followed a failure, in the story of a job.
ACTIONS = {
    "retry": "tried again",
    "park": "waited",
    "reconcile": "looked what became of it",
    "abort": "waited for access",
    "shutdown": "went to another worker",
    "skip": "ended here",
    "adopt": "took over what existed",
    "dead_letter": "given up",
}


def waits(reason: str) -> str:
    """Say why a job is parked."""
    return WAITS.get(reason, WAITS_OTHERWISE)
