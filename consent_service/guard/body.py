"""What a request's body must be before anybody parses it: announced as JSON, small, prompt, UTF-8, and flat enough."""

from __future__ import annotations

from collections.abc import Mapping

from consent_service.errors import Malformed, TooLarge, WrongMediaType
from consent_service.guard.operations import Operation

MAX_DEPTH = 32
_FORM = b"application/x-www-form-urlencoded"
_BOM = b"\xef\xbb\xbf"
_MAX_LENGTH_DIGITS = 15
_NO_MARKS = bytes(set(range(256)) - set(b'[]{}"'))
_SQUARE = bytes.maketrans(b"{}", b"[]")


def announced(headers: Mapping[bytes, bytes]) -> int | None:
    """How many bytes the head of the request announces; None for a stream of unknown length.

    Raises:
        Malformed: the length is no number.
    """
    if b"transfer-encoding" in headers:
        return None
    length = headers.get(b"content-length")
    if length is None:
        return 0
    if not length.isdigit() or len(length) > _MAX_LENGTH_DIGITS:
        raise Malformed("`Content-Length` is not a number of bytes.")
    return int(length)


def demand_acceptable(operation: Operation, headers: Mapping[bytes, bytes], length: int | None) -> None:
    """Refuse by the head alone what would be refused anyway.

    Browsers send forms and plain text to other sites without asking; JSON they do not. That is why the content type is
    demanded even where the body could be read without it.

    Raises:
        WrongMediaType: it is not JSON, is compressed, or none is taken here.
        TooLarge: more is announced than is taken.
    """
    if headers.get(b"content-encoding", b"identity") != b"identity":
        raise WrongMediaType("Compressed bodies are not read here. Send it without `Content-Encoding`.")
    if operation.body is None:
        if length != 0:
            raise WrongMediaType("This call takes no body. Send none.")
    elif operation.form:
        if headers.get(b"content-type", b"").partition(b";")[0].strip().lower() != _FORM:
            raise WrongMediaType("A form is read here. Send `Content-Type: application/x-www-form-urlencoded`.")
    elif not _is_json(headers.get(b"content-type", b"")):
        raise WrongMediaType
    if operation.body is not None and length is not None and length > operation.max_body:
        raise too_large(operation.max_body)


def _is_json(content_type: bytes) -> bool:
    if content_type == b"application/json":
        return True
    kind, *parameters = (part.strip().lower() for part in content_type.split(b";"))
    return kind == b"application/json" and all(one in (b"charset=utf-8", b'charset="utf-8"') for one in parameters)


def too_large(limit: int) -> TooLarge:
    """The refusal of a body of more than `limit` bytes."""
    return TooLarge(f"At most {limit} bytes are taken here. Split it, or use the call for many at once.")


def demand_text(body: bytes) -> None:
    """Refuse what is no UTF-8 or nested so deeply that a parser could run out of stack.

    Raises:
        Malformed: either.
    """
    if not body.isascii():
        if body.startswith(_BOM):
            raise Malformed("The body begins with a byte order mark. Send it without.")
        try:
            body.decode()
        except UnicodeDecodeError:
            raise Malformed("The body is not UTF-8.") from None
    if is_too_deep(body):
        raise Malformed(f"The body is nested deeper than {MAX_DEPTH} levels, or its brackets do not match.")


def is_too_deep(body: bytes) -> bool:
    """Whether brackets outside strings nest deeper than MAX_DEPTH, or do not match where there are many.

    Never a loop over bytes: few brackets cannot nest deeply; else strings are cut out, and each pass over the
    brackets that are left takes away the innermost level.
    """
    if body.count(b"{") + body.count(b"[") <= MAX_DEPTH:
        return False
    if b"\\" in body:
        # Pairs first: what is left before a quote then escapes it.
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    # Two quotes side by side change nothing for the rest: most strings hold no bracket, so few are left to cut out.
    marks = body.translate(_SQUARE, _NO_MARKS).replace(b'""', b"")
    brackets = b"".join(marks.split(b'"')[::2])
    for _ in range(MAX_DEPTH):
        before = len(brackets)
        brackets = brackets.replace(b"[]", b"")
        if len(brackets) == before:
            break
    return bool(brackets)
