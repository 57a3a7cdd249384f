"""What an exception of an fsspec driver means: gone, forbidden, refused, or worth another attempt.

Drivers agree on nothing: some raise `OSError`s, some exceptions of their HTTP libraries, some hide one in the other.
They are told apart by HTTP status and by the names of their classes, so that no driver is imported for it.
"""

from enum import Enum, auto
from typing import Any


class Failure(Enum):
    """What to do about a failed attempt."""

    ABSENT = auto()
    FORBIDDEN = auto()
    REFUSED = auto()  # and will be again
    PASSING = auto()  # may go away


_FORBIDDEN = {401, 403, 407}
_ABSENT = {404, 410}
_PASSING = {400, 408, 425, 429}  # S3 answers 400 when a request times out
_PASSING_CLASSES = {
    "OSError",
    "EOFError",
    "TimeoutError",
    "JSONDecodeError",
    "HTTPException",  # http.client
    "ConnectionError",  # botocore; Python's own is an OSError
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
    "ClientError",  # aiohttp; those of botocore have a status
    "GoogleAuthError",
    "HttpError",  # gcsfs
    "ChecksumError",
}
_ABSENT_CLASSES = {"FileNotFoundError", "NotADirectoryError", "IsADirectoryError"}
_CERTIFICATE_CLASSES = {"SSLCertVerificationError", "CertificateError", "ClientConnectorCertificateError"}
_TEXT_LIMIT = 300


def classify(error: BaseException) -> Failure:
    """What an exception of a driver means."""
    status, names = http_status(error), {name for link in _causes(error) for name in _class_names(link)}
    if status in _FORBIDDEN or "PermissionError" in names or _lacks_credentials(error, names):
        return Failure.FORBIDDEN
    if status is not None:
        passing = status in _PASSING or status >= 500
        return Failure.ABSENT if status in _ABSENT else Failure.PASSING if passing else Failure.REFUSED
    if names & _CERTIFICATE_CLASSES:
        return Failure.REFUSED
    if names & _PASSING_CLASSES and not names & _ABSENT_CLASSES:
        return Failure.PASSING
    return Failure.ABSENT if _class_names(error) & _ABSENT_CLASSES else Failure.REFUSED


def describe(error: BaseException) -> str:
    """One line on what went wrong, for messages."""
    status, causes = http_status(error), _causes(error)
    texts = [" ".join(str(getattr(link, "message", None) or link).split())[:_TEXT_LIMIT] for link in causes]
    text = next((text for text in reversed(texts) if text), type(causes[0]).__name__)
    return text if status is None else f"HTTP {status} ({text})"


def http_status(error: BaseException) -> int | None:
    """The status that the store answered with, as far as the exception or one of its causes knows it."""
    for link in _causes(error):
        response: Any = getattr(link, "response", None)
        if isinstance(response, dict):  # botocore
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        else:  # aiohttp, azure, requests, gcsfs (in aiohttp a `code` may be its own opinion of a broken body)
            values = [getattr(link, "status", None), getattr(link, "status_code", None)]
            values.append(getattr(response, "status_code", None))
            values.append(getattr(link, "code", None) if type(link).__name__ == "HttpError" else None)
            found = next((value for value in values if value is not None), None)
        if str(found).isdigit() and 300 <= int(found) < 600:
            return int(found)
    return None


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and its causes; without "not found", which fsspec's HTTP driver raises whatever happened."""
    links = [error]
    while (cause := links[-1].__cause__) is not None:
        links.append(cause)
    telling = [link for link in links if not _class_names(link) & _ABSENT_CLASSES]
    return telling or [error]


def _class_names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _lacks_credentials(error: BaseException, names: set[str]) -> bool:
    return any("Credential" in name for name in names) or str(error).startswith("Forbidden:")  # the latter: gcsfs
