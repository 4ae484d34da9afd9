"""The error answers of the Bot API: a name for each row of UPSTREAMS 3.3, its status and text."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

ROWS: dict[str, tuple[int, str]] = {
    # The request itself.
    "malformed_token": (404, "Not Found"),
    "unauthorized": (401, "Unauthorized"),
    "unallowed_token": (421, "Misdirected Request: unallowed token specified"),
    "unknown_method": (404, "Not Found: method not found"),
    "bad_json": (400, "Bad Request: JSON object expected"),
    "too_large": (413, "Request Entity Too Large"),
    "conflict": (409, "Conflict: terminated by other getUpdates request"),
    # The chat.
    "chat_id_empty": (400, "Bad Request: chat_id is empty"),
    "not_found": (400, "Bad Request: chat not found"),
    "migrated": (400, "Bad Request: group chat was upgraded to a supergroup chat"),
    "no_rights": (400, "Bad Request: not enough rights to send videos to the chat"),
    "no_write_access": (400, "Bad Request: have no write access to the chat"),
    "blocked": (403, "Forbidden: bot was blocked by the user"),
    "deactivated": (403, "Forbidden: user is deactivated"),
    "not_started": (403, "Forbidden: bot can't initiate conversation with a user"),
    "kicked": (403, "Forbidden: bot was kicked from the group chat"),
    "not_a_member": (403, "Forbidden: bot is not a member of the supergroup chat"),
    "group_deleted": (403, "Forbidden: the group chat was deleted"),
    "is_a_bot": (403, "Forbidden: bot can't send messages to bots"),
    # The text and the buttons.
    "text_empty": (400, "Bad Request: message text is empty"),
    "text_too_long": (400, "Bad Request: message is too long"),
    "caption_too_long": (400, "Bad Request: message caption is too long"),
    "bad_entities": (
        400,
        "Bad Request: can't parse entities: Can't find end of the entity starting at byte offset 0",
    ),
    "bad_markup": (400, "Bad Request: can't parse reply keyboard markup JSON object"),
    "markup_not_object": (400, "Bad Request: object expected as reply markup"),
    "bad_button": (
        400,
        'Bad Request: can\'t parse inline keyboard button: Field "text" must be of type String',
    ),
    "text_button": (
        400,
        "Bad Request: can't parse inline keyboard button: Text buttons are unallowed",
    ),
    "markup_too_long": (400, "Bad Request: reply markup is too long"),
    "button_data_invalid": (400, "Bad Request: BUTTON_DATA_INVALID"),
    "button_url_invalid": (400, "Bad Request: BUTTON_URL_INVALID"),
    # The video.
    "no_video": (400, "Bad Request: there is no video in the request"),
    "file_empty": (400, "Bad Request: file must be non-empty"),
    "wrong_file": (400, "Bad Request: wrong file identifier/HTTP URL specified"),
    "wrong_url": (400, "Bad Request: wrong HTTP URL specified"),
    "wrong_page_type": (400, "Bad Request: wrong type of the web page content"),
    "wrong_file_id": (
        400,
        "Bad Request: wrong remote file identifier specified: can't unserialize it",
    ),
    "url_failed": (400, "Bad Request: failed to get HTTP URL content"),
    "url_not_uploaded": (400, "Bad Request: can't upload file by URL"),
    "file_too_big": (400, "Bad Request: file is too big"),
    # A webhook and its presses.
    "bad_secret": (400, "Bad Request: secret token contains unallowed characters"),
    "query_too_old": (
        400,
        "Bad Request: query is too old and response timeout expired or query ID is invalid",
    ),
    "answer_too_long": (400, "Bad Request: MESSAGE_TOO_LONG"),
    # The server.
    "too_many_requests": (429, "Too Many Requests: retry after 1"),
    "restart": (500, "Internal Server Error: restart"),
    "immediately_deleted": (
        500,
        "Internal Server Error: sent message was immediately deleted and can't be returned",
    ),
}
_RETRY_AFTER = re.compile(r"retry after (\d+)")


class BotRefusal(Exception):  # noqa: N818 - a refused call is an answer, not a failure of the server
    """An answer with `ok` false: a row by its name, or any other status and text.

    A *row* that stands in no table is taken for one of the server's own ids: 400 `Bad Request: ID`.
    """

    def __init__(
        self,
        row: str,
        *,
        status: int | None = None,
        description: str = "",
        parameters: Mapping[str, int] | None = None,
    ) -> None:
        known_status, known_text = ROWS.get(row, (400, f"Bad Request: {row}"))
        super().__init__(row)
        self.status = known_status if status is None else status
        self.description = description or known_text
        self.row = row or self.description
        self.parameters = dict(parameters or {})
        # The text, the parameter and the header are made of one number (UPSTREAMS 0, row 8).
        if self.status == 429 and (told := _RETRY_AFTER.search(self.description)):
            self.parameters["retry_after"] = int(told[1])

    @property
    def headers(self) -> dict[str, str]:
        """Return what the answer has in addition: `Retry-After` if it is a 429."""
        wait = self.parameters.get("retry_after")
        return {} if wait is None else {"Retry-After": str(wait)}

    def body(self) -> dict[str, object]:
        """Return the JSON object; `error_code` always equals the HTTP status."""
        found = {"ok": False, "error_code": self.status, "description": self.description}
        return found | ({"parameters": self.parameters} if self.parameters else {})


def too_many_requests(seconds: float) -> BotRefusal:
    """Return the 429 that asks for *seconds*, in whole ones and at least one."""
    wait = max(1, math.ceil(seconds))
    return BotRefusal("too_many_requests", description=f"Too Many Requests: retry after {wait}")
