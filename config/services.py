"""How each upstream wants to be called: rate, burst, deadlines, breaker."""

from __future__ import annotations

import math
from dataclasses import dataclass

from config.settings import Destination, Settings, settings

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
    *ops_per_permit* says how many operations one permit carries (a Bitrix batch: 50); *pause* is
    how long to stay away after a rate limit whose end the upstream does not tell.
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
    pause: float = 0.0

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


def kie(settings: Settings) -> Service:
    """UPSTREAMS 2.1: 20 new requests in 10 s, the rest is refused, not queued.

    Evenly spaced, so that no ten seconds hold more than twenty, even where calls that are a second
    slower than their successors arrive bunched: 1.8 × 11 s < 20.
    """
    return Service(
        name="kie",
        rate=settings.kie_rate,
        burst=1,
        max_wait=1.0,
        connect_timeout=5.0,
        read_timeout=30.0,  # it answers with an id, it does not make the video meanwhile
        in_flight=_in_flight(settings.kie_rate),
    )


def kie_queries(settings: Settings) -> Service:
    """UPSTREAMS 2.1: at most 10 queries a second per key.

    A gate of its own: a model that is paused must not keep finished videos from being fetched.
    """
    return Service(
        name="kie-queries",
        rate=settings.kie_query_rate,
        burst=1,
        max_wait=1.0,
        connect_timeout=5.0,
        read_timeout=15.0,
        in_flight=_in_flight(settings.kie_query_rate),
    )


def _in_flight(rate: float) -> int:
    """What KIE answers within two seconds, the wait for the permit included: no thread idles."""
    return max(32, math.ceil(2 * rate))


def telegram(settings: Settings) -> Service:
    """UPSTREAMS 3.2: some 30 messages a second in all; 28 leave room for what arrives bunched."""
    return Service(
        name="telegram",
        rate=settings.telegram_rate,
        burst=1,
        max_wait=2.0,  # two messages to one chat, a second apart, need no second run
        connect_timeout=5.0,
        read_timeout=120.0,  # UPSTREAMS 3.4: an upload is answered when Telegram has stored it
        in_flight=64,
    )


PRIVATE_PACE = 1.05  # s between two messages to one person: UPSTREAMS 3.2 says one a second
GROUP_PACE = 3.15  # s between two messages to one group: 20 a minute

CALLBACK_PATIENCE = 30.0  # s; a job that looks at KIE is parked again within seconds
RESULT_LIFE = 72_000.0  # s; UPSTREAMS 2.1: links expire after some 24 hours, and are to be used
DELIVERY_LOST = 900.0  # s without a sign of a delivery after which it is sent once more

REFETCH = 240.0  # s; a file that is not here is fetched by its link, or by a fresh one

# s between two questions at least where a callback says when it is over: most generations are, by
# then, and looking at thousands of them takes more of a worker than delivering them.
POLL_SLOWLY = 240.0
# UPSTREAMS 2.1: 2-3 s for 30 s, 5-10 s, then 15-30 s. Age of the generation (s) → pause (s).
POLLING = ((30.0, 2.5), (120.0, 7.5))
POLL_OLD = 20.0
GENERATION_DEADLINE = 900.0  # s; UPSTREAMS 2.1: stop at 10-15 min
# s; UPSTREAMS 2.2: a task may be unknown for 90 s after its creation. Longer than the first pause
# between two looks, so that nothing paid for is given up after a single one.
VISIBLE_WITHIN = POLL_SLOWLY + 30.0
CALLED_BACK_WITHIN = GENERATION_DEADLINE  # s; a lost create is not repeated before


def x(settings: Settings) -> Service:
    """UPSTREAMS 4: 180 requests in 15 minutes for each user, none documented for all together.

    What a user has left stands in every answer (`clients.x` heeds it); the rate here only keeps a
    thousand crawls from starting in one second.
    """
    return Service(
        name="x",
        rate=settings.x_rate,
        burst=math.ceil(2 * settings.x_rate),
        max_wait=2.0,
        connect_timeout=5.0,
        read_timeout=30.0,  # a page of ninety is read in a second or two
        in_flight=32,
        pause=900.0,  # UPSTREAMS 4: the window of a user
    )


def integration(name: str, destination: Destination) -> Service:
    """One destination of messages. Each has its own gate: a dead one holds up no other."""
    return Service(
        name=f"integration-{name}",
        rate=destination.rate,
        burst=math.ceil(destination.rate),  # nobody documents one; a second's worth
        max_wait=2.0,
        connect_timeout=5.0,
        read_timeout=60.0,  # a server checks and indexes a whole transaction before it answers
        in_flight=16,
    )


PAGE = 90  # bookmarks; UPSTREAMS 4: with 100 the listing may end early
CHECKPOINT_EVERY = 10  # bookmarks stored, with the checkpoint, in one transaction
# s after which a crawl lets others have its thread: it comes back behind them
CRAWL_TURN = 30.0
NEXT_TURN = 1.0  # s until then; whoever stands in the queue is before it
# Of 0, 3, 6 and 9 in kombu's Redis transport; the lowest goes first.
INTERACTIVE, BACKGROUND = 0, 6


def crawl_lease(settings: Settings) -> float:
    """Return how long a crawl may be at work before another of its user may take over, in s.

    A turn, then the page that it had begun, with the renewal of a token before it.
    """
    return CRAWL_TURN + 3 * x(settings).lease


def poll_pause(age: float, *, called_back: bool) -> float:
    """Return the seconds until KIE is asked again about a generation that is *age* seconds old."""
    if called_back:
        return max(POLL_SLOWLY, age)  # without its callback, a video comes twice as late at most
    return next((pause for until, pause in POLLING if age < until), POLL_OLD)


def tries(settings: Settings) -> int:
    """Return how often KIE is asked for one video; each time costs, whoever's fault it was."""
    return settings.max_retries + 1


def delivery_lease(settings: Settings, ways: int) -> float:
    """Return how long a delivery may still take effect that has so many ways to go.

    Then comes a link as a text. Where there is but one way, the file is here already.
    """
    calls = (ways + 1) * telegram(settings).lease
    return calls if ways == 1 else calls + REFETCH


def scaled(seconds: float) -> float:
    """Return a wait of ours as RETRY_TIME_SCALE has it."""
    return seconds * settings().retry_time_scale


def services() -> tuple[Service, ...]:
    """Every upstream we know how to call."""
    config = settings()
    destinations = config.destinations.items()
    return (
        bitrix(config),
        kie(config),
        kie_queries(config),
        telegram(config),
        x(config),
        *(integration(name, destination) for name, destination in destinations),
    )
