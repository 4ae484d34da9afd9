"""Stops a worker dead at a point of a video's life, as `pauses` does for deals.

The order's id, or what else is known of it, begins with the name of the point.
"""

from __future__ import annotations

from clients.kie import Kie
from storage import credits
from tasks import video
from tests.acceptance.pauses import after, before

# KIE has begun, and we know its task; nothing is written down.
after(Kie, "create", "begun", lambda _, image_url, *__: image_url)
# The video is here, and nobody has been asked to deliver it.
before(video.send, "apply_async", "made", lambda **options: repr(options))
# The row says that it is being sent; the request has not left.
before(video, "delivered", "unsent", lambda made: made.order_id)
# It has arrived, and the job that waits for it has not been woken.
before(video, "end", "arrived", lambda sent: sent.order_id)
# The credits are back, and the user does not know; in the job itself, and in its compensation.
for point in ("refunded", "compensated"):
    before(video, "explain", point, lambda ending, *_: ending.video.order_id)
# The charge is written, and not committed. Nobody else can write: it has to be the last.
after(credits, "charge", "charged", lambda *_, reason, **__: reason)
