"""Dating a checkpoint: an authority of RFC 3161 signs that the note was there at a moment. The extra `timestamps`."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from types import ModuleType
from typing import TYPE_CHECKING, NamedTuple

import httpx
from cryptography import x509

from consent_service import clock, outbound
from consent_service.errors import SetupError

if TYPE_CHECKING:
    from rfc3161_client import TimeStampResponse, TimeStampTokenInfo

STAMP_S = 5.0
"""Seconds for all of a call to an authority."""
MAX_TOKEN = 65_536
"""Bytes of an authority's answer."""
SKEW = timedelta(minutes=5)
"""By how much the clock of an authority may differ from ours."""
_GRANTED = 0
_SHA256 = "2.16.840.1.101.3.4.2.1"
_TYPE = "application/timestamp-reply"
_TO_CERTIFICATES = (0, 1, 1, 0, 3)
"""The way to them, by place: TimeStampResp, timeStampToken, content, SignedData, certificates (RFC 3161, RFC 5652)."""
_HEADERS = {"Content-Type": "application/timestamp-query", "Accept": _TYPE}


class StampError(ValueError):
    """A timestamp that cannot be had, or does not hold. The text says why."""


class Stamped(NamedTuple):
    """A timestamp that was verified."""

    at: datetime
    """When the note was there, UTC."""
    by: str
    """Name of the authority, the subject of its certificate (RFC 4514)."""


def demand_usable(url: str) -> None:
    """Let the address of an authority pass that can be asked.

    Raises:
        SetupError: it may not be asked, or the extra is not installed.
    """
    _library()
    try:
        outbound.demand_safe(url)
    except ValueError as error:
        raise SetupError(f"The time-stamping authority `{url}` cannot be asked: {error}.") from None


async def stamp(note: str, url: str) -> bytes:
    """A timestamp over the SHA-256 of a note: the authority's answer in DER, what `openssl ts -verify -in` reads.

    It is for this note and this request and says the time of now. Whether the authority is one to be trusted is not
    looked at here: that is for `verify`, and for whoever has its root certificate.

    Raises:
        StampError: there is none.
        SetupError: the extra is not installed.
    """
    rfc3161 = _library()
    request = rfc3161.TimestampRequestBuilder(note.encode(), rfc3161.HashAlgorithm.SHA256).build()
    try:
        async with await outbound.client() as http:
            answer = await outbound.ask(
                http, "POST", url, headers=_HEADERS, content=request.as_bytes(), seconds=STAMP_S, limit=MAX_TOKEN
            )
    except (httpx.HTTPError, TimeoutError):
        raise StampError("the authority cannot be reached") from None
    except ValueError as error:
        raise StampError(f"the authority cannot be heard: {error}") from None
    if answer.status != httpx.codes.OK or answer.kind != _TYPE:
        raise StampError(f"the authority answered {answer.status}, and no timestamp")
    with _judging():
        info = _about(_read(answer.body), note)
        if info.nonce != request.nonce:
            raise StampError("the timestamp is for another request")
        if abs(info.gen_time - clock.now()) > SKEW:
            raise StampError("the authority has another time than we")
    return answer.body


def verify(token: bytes, note: str, roots: bytes) -> Stamped:
    """What a timestamp proves to whoever trusts these certificates (PEM, one or more). Offline.

    Its own certificate must have been valid at that moment, not now.

    Raises:
        StampError: it proves nothing.
        SetupError: the extra is not installed.
    """
    with _judging():
        answer = _read(token)
        info = _about(answer, note)
        trusted = x509.load_pem_x509_certificates(roots)
        _library().VerifierBuilder(roots=trusted).build().verify_message(answer, note.encode())
        return Stamped(info.gen_time, _signer(answer))


@contextmanager
def _judging() -> Iterator[None]:
    """Where bytes of others are read: whatever the libraries make of them, they are no timestamp."""
    try:
        yield
    except StampError:
        raise
    except _library().VerificationError as error:
        raise StampError(f"the timestamp does not hold: {error}") from None
    except Exception:  # noqa: BLE001 -- there is no list of what one changed bit makes them raise
        raise StampError("the timestamp, or a certificate to verify it with, cannot be read") from None


def _read(token: bytes) -> TimeStampResponse:
    answer: TimeStampResponse = _library().decode_timestamp_response(_in_order(token))
    if answer.status != _GRANTED:
        raise StampError(f"the authority refused, with status {answer.status}")
    return answer


def _in_order(token: bytes) -> bytes:
    """The answer with its certificates sorted as DER demands of a SET, which the library insists on.

    Authorities send a chain as it grew, and may (RFC 5652, section 5.1). No signature covers the order.
    """
    start, end = 0, len(token)
    for which in _TO_CERTIFICATES:
        parts = _parts(token, start, end)
        if len(parts) <= which:
            return token
        _, start, end = parts[which]
    certificates = sorted(token[first:last] for first, _, last in _parts(token, start, end))
    return token[:start] + b"".join(certificates) + token[end:]


def _parts(raw: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    """Of each DER element from `at` to `end`: where it starts, where its content starts, and where both end."""
    found = []
    while at + 1 < end:
        width = raw[at + 1] & 0x7F if raw[at + 1] & 0x80 else 0
        content = at + 2 + width
        size = int.from_bytes(raw[at + 2 : content], "big") if width else raw[at + 1]
        if content + size > end:
            raise ValueError("an element is longer than what it is in")
        found.append((at, content, content + size))
        at = content + size
    return found


def _about(answer: TimeStampResponse, note: str) -> TimeStampTokenInfo:
    """What a timestamp says, which is about this note."""
    info = answer.tst_info
    imprint = info.message_imprint
    if (imprint.hash_algorithm.dotted_string, imprint.message) != (_SHA256, hashlib.sha256(note.encode()).digest()):
        raise StampError("the timestamp is about something else")
    return info


def _signer(answer: TimeStampResponse) -> str:
    """The subject of the certificate that signed: the library found exactly one, by issuer and serial number."""
    (signer,) = answer.signed_data.signer_infos
    certificates = (x509.load_der_x509_certificate(raw) for raw in answer.signed_data.certificates)
    return next(
        one.subject.rfc4514_string()
        for one in certificates
        if (one.issuer, one.serial_number) == (signer.issuer, signer.serial_number)
    )


def _library() -> ModuleType:
    try:
        import rfc3161_client  # noqa: PLC0415 -- an extra
    except ImportError:
        raise SetupError("Timestamps need an extra: pip install 'consent-service[timestamps]'.") from None
    return rfc3161_client
