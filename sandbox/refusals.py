"""The error answers of a portal: codes, statuses and texts (UPSTREAMS 1.3)."""

from __future__ import annotations

# Status and text per code. Where the copies of the documentation disagree, the newer one (B2)
# counts; the texts are those of the documentation's table of system errors.
SYSTEM: dict[str, tuple[int, str]] = {
    "QUERY_LIMIT_EXCEEDED": (503, "Too many requests"),
    "OPERATION_TIME_LIMIT": (429, "Method is blocked due to operation time limit."),
    "INTERNAL_SERVER_ERROR": (500, "Internal server error"),
    "ERROR_UNEXPECTED_ANSWER": (500, "Server returned an unexpected response"),
    "OVERLOAD_LIMIT": (401, "REST API is blocked due to overload"),
    "NO_AUTH_FOUND": (401, "Wrong authorization data"),
    "INVALID_CREDENTIALS": (401, "Invalid request credentials"),
    "INSUFFICIENT_SCOPE": (
        401,
        "The request requires higher privileges than provided by the webhook token",
    ),
    "EXPIRED_TOKEN": (401, "The access token provided has expired"),
    "USER_ACCESS_ERROR": (401, "The user does not have access to the application"),
    "ACCESS_DENIED": (401, "REST API is available only on commercial plans"),
    "INVALID_REQUEST": (401, "Https required"),
    "PORTAL_DELETED": (403, "Portal was deleted"),
    "PAYMENT_REQUIRED": (401, "Payment required"),
    "ERROR_METHOD_NOT_FOUND": (404, "Method not found!"),
    "ERROR_BATCH_LENGTH_EXCEEDED": (400, "Max batch length exceeded"),
    "ERROR_BATCH_METHOD_NOT_ALLOWED": (405, "Method is not allowed for batch usage"),
    "METHOD_CONFIRM_WAITING": (401, "Waiting for confirmation"),
    "METHOD_CONFIRM_DENIED": (403, "Method call denied"),
    "ALLOWED_ONLY_INTRANET_USER": (403, "Allowed only for intranet users"),
}
_UNLISTED = 400  # method errors: `""`, ERROR_CORE, NOT_FOUND, INVALID_ARG_VALUE, `100`

NOT_FOUND = "Not found"
CONTACT_NOT_FOUND = "Contact is not found"
ELEMENT_NOT_FOUND = "Element not found"
NO_ID = "ID is not defined or invalid."
NO_ACCESS = "Access denied."
BAD_EMAIL = 'The field "Work e-mail" contains an invalid address'
BAD_CURRENCY = 'Invalid value for the "Currency" field'
BAD_AMOUNT = 'Invalid value for the "Amount" field'

# The portal answers in its own language; the codes stay. Texts not listed stay English too.
RUSSIAN: dict[str, str] = {
    NOT_FOUND: "Не найдено",
    CONTACT_NOT_FOUND: "Контакт не найден",
    ELEMENT_NOT_FOUND: "Элемент не найден",
    NO_ID: "Не указан или неверен ID.",
    NO_ACCESS: "Доступ запрещён.",
    BAD_EMAIL: "Поле «Рабочий e-mail» содержит некорректный адрес",
    BAD_CURRENCY: "Неверное значение поля «Валюта»",
    BAD_AMOUNT: "Неверное значение поля «Сумма»",
    "Too many requests": "Слишком много запросов",
    "Invalid request credentials": "Неверные учётные данные запроса",
    "Internal server error": "Внутренняя ошибка сервера",
    "Method not found!": "Метод не найден!",
}


class Refusal(Exception):  # noqa: N818 - a refused call is an answer, not a failure of the portal
    """An answer `{"error": code, "error_description": text}`; the code may be empty."""

    def __init__(self, code: str, text: str = "", status: int | None = None) -> None:
        known_status, known_text = SYSTEM.get(code.upper(), (_UNLISTED, ""))
        super().__init__(code)
        self.code = code
        self.text = text or known_text
        self.status = known_status if status is None else status

    def body(self, language: str = "en") -> dict[str, str]:
        """Return the JSON object, the text in *language* (`en` or `ru`)."""
        text = RUSSIAN.get(self.text, self.text) if language == "ru" else self.text
        return {"error": self.code, "error_description": text}
