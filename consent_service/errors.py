"""Domain errors. They know no HTTP; the guard alone turns them into problem documents (RFC 9457).

An error's docstring is its title and its remedy.
"""

from __future__ import annotations

from typing import Any

import msgspec


class FieldError(msgspec.Struct, frozen=True):
    """One thing wrong with one field: a JSON pointer (RFC 6901) into the body, and what to write instead."""

    pointer: str
    detail: str


class ConsentError(Exception):
    """The service refused. Base of every error raised on purpose."""

    def __init__(
        self, detail: str = "", errors: tuple[FieldError, ...] = (), extra: dict[str, Any] | None = None
    ) -> None:
        super().__init__(detail or self.title())
        self.detail = detail
        self.errors = errors
        self.extra = extra
        """Further members of the answer, by name."""

    @classmethod
    def title(cls) -> str:
        """The first sentence of the docstring: what happened, the same words each time."""
        return (cls.__doc__ or cls.__name__).split("\n")[0].split(". ")[0].rstrip(".")


class Malformed(ConsentError):
    """The body cannot be read. Send one UTF-8 JSON object as the OpenAPI file describes it."""


class Invalid(ConsentError):
    """The body can be read but not accepted. Every field that must change is listed in `errors`."""


class KeyMissing(ConsentError):
    """A grant needs an idempotency key. Send the header `Idempotency-Key: "order-4711"` or an `id` in the body."""


class KeyReused(ConsentError):
    """This idempotency key was used with another body. Choose a new key for a new act."""


class Unauthenticated(ConsentError):
    """No valid credential was sent. Send `Authorization: Bearer <key>`."""


class Forbidden(ConsentError):
    """This credential may not do that. Ask for a key with the scope that is named."""


class NotFound(ConsentError):
    """There is nothing here. Compare the address with those in /openapi.json."""


class Erased(ConsentError):
    """What was recorded under this key has been erased since. Choose a new key for a new act."""


class RevisionAhead(ConsentError):
    """`at_least` names a revision that this ledger has not reached. Check the tenant and send the `rev` you got."""


class Taken(ConsentError):
    """Something else is there already. What it is, and what to do about it, stands in `detail`."""


class Frozen(ConsentError):
    """This ledger takes no writes at the moment. Ask the operator why it is frozen; checks go on."""


class Unavailable(ConsentError):
    """Something that this call needs cannot be reached at the moment. Send the same request again with the same key."""


class SetupError(ConsentError):
    """The service cannot start. The text says what is missing or wrong, and what to do."""


class PolicyError(Invalid):
    """The policy files cannot be accepted. Every error names its file and key, and what to write instead."""


class NotAllowed(ConsentError):
    """This address does not take that method. `Allow` lists the methods it takes."""

    def __init__(self, allow: str) -> None:
        super().__init__()
        self.allow = allow


class WrongMediaType(ConsentError):
    """The body is not in a form that is read here. Send plain `Content-Type: application/json`."""


class TooLarge(ConsentError):
    """The body is larger than this call takes. Split it, or use the call for many at once."""


class TooSlow(ConsentError):
    """The body did not arrive in time. Send the same request again with the same key."""


class TooMany(ConsentError):
    """This credential has used up its requests for the moment. Wait as long as `Retry-After` says."""

    def __init__(self, retry_after: int) -> None:
        super().__init__()
        self.retry_after = retry_after


class Overdue(ConsentError):
    """No answer was ready in time. Send the same request again with the same key."""


class Failed(ConsentError):
    """Something went wrong on our side. Tell the operator the `error_id`; the log names the place."""

    def __init__(self, error_id: str) -> None:
        super().__init__()
        self.extra = {"error_id": error_id}
