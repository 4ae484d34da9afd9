"""How each upstream wants to be called: rate, burst, deadlines, breaker."""

from __future__ import annotations

from dataclasses import dataclass

from config.settings import Settings, settings

# s an update waits for the create that was probably sent just before it, and a deal for a contact
PREDECESSOR_GRACE = 10.0
# s after which a create that was begun and not finished is taken for cancelled: the longest line
# at a gate brings its jobs back within an hour
PREDECESSOR_PATIENCE = 7200.0
CALLS_PER_UPDATE = 2  # a contact is read first, to add only the addresses that are new
CALLS_PER_CONTACT = 3  # a look-up by e-mail, one by phone, and the add


@dataclass(frozen=True, slots=True)
class Service:
    """The limits of one upstream. *rate* is in permits per second, every time in seconds.

    *max_wait* is how long a thread may wait for a permit before its job is parked instead;
    *ops_per_permit* says how many operations one permit carries (a Bitrix batch: 50).
    """

    name: str
    rate: float
    burst: int
    max_wait: float
    connect_timeout: float
    read_timeout: float
    ops_per_permit: int = 1
    in_flight: int = 8  # requests of one process at a time; the bulkhead of this upstream
    failure_threshold: int = 3
    success_threshold: int = 2
    reset_timeout: float = 30.0

    @property
    def patience(self) -> float:
        """How long a call may wait before it is sent: for a place in a request, then the permit."""
        return 2 * self.max_wait

    @property
    def lease(self) -> float:
        """How long a call may still take effect after it was intended: wait, send, answer.

        Sending takes as long as connecting at most. The margin of 15 s covers a slow thread and
        the way back to the database.
        """
        return self.patience + 2 * self.connect_timeout + self.read_timeout + 15.0


def bitrix(settings: Settings) -> Service:
    """UPSTREAMS 1.2: −2/s, block above 50, one request ≤ 60 s in the cloud."""
    return Service(
        name="bitrix",
        rate=settings.bitrix_rate,
        burst=settings.bitrix_burst,
        max_wait=5.0,  # ten permits at 2/s: longer queues wait in Redis, where people see them
        connect_timeout=5.0,
        read_timeout=65.0,  # the portal gives up at 60 s; a shorter read would only lose answers
        ops_per_permit=50 if settings.bitrix_coalesce else 1,  # UPSTREAMS 1.1: size of a batch
    )


def services() -> tuple[Service, ...]:
    """Every upstream we know how to call."""
    return (bitrix(settings()),)
