"""Receipts shown: whoever holds one gets it verified, and told in terms for machines and in words for people.

It discloses nothing: the receipt holds the event, and the rest stands in the tenant's policy.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from consent_service import decode
from consent_service.auth import Credential
from consent_service.errors import FieldError, Invalid
from consent_service.ledger import Ledgers, read_head
from consent_service.ledger.note import NoteError
from consent_service.ledger.proof import MAX_PROOF, Proof
from consent_service.ledger.receipt import Receipt, verify
from consent_service.ledger.trust import Trust, trusting
from consent_service.policies import Policy
from consent_service.records.dpv import receipt
from consent_service.records.prose import Place, as_html, as_text, sheet
from consent_service.states import Event


class ReceiptBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A receipt, and how it is to be told."""

    receipt: Annotated[str, Meta(max_length=MAX_PROOF)]
    """As it was answered (c2sp.org/tlog-proof@v1)."""
    language: Annotated[str, Meta(pattern=r"^[a-z]{2}$(?!\n)", examples=["de", "en"])] = "en"
    """ISO 639-1. The policy's texts come in it where they have it; all around is German or English."""
    format: Literal["text", "html", "json"] = "text"


class ReceiptShown(msgspec.Struct, frozen=True, kw_only=True):
    """What a genuine receipt says."""

    origin: str
    """Of the ledger."""
    index: int
    """Of the entry."""
    record: dict[str, Any]
    """The consent receipt as JSON-LD (DPV 2.3, after ISO/IEC TS 27560:2023), as the act was answered with."""
    text: str | None
    """In words; null unless `format` is `text`."""
    html: str | None
    """The same as a page; null unless `format` is `html`."""


_ENCODER = msgspec.json.Encoder()
_EVENT = msgspec.json.Decoder(Event)


class Shower:
    """Shows receipts, of all tenants."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers

    async def show(self, raw: bytes, credential: Credential) -> bytes:
        """Verify a receipt against the tenant's own ledger, and tell what it says (`ReceiptBody` to `ReceiptShown`).

        Raises:
            Invalid: it is none of this ledger, or about something else than a person's decisions.
        """
        body = decode.body(raw, ReceiptBody)
        ledger = self._ledgers.of(credential.log_id)
        async with ledger.connection() as connection:
            head = await read_head(connection, ledger.log_id)
            logs = await ledger.logs(connection, head)
            keys = {log.origin: [str(verifier) for verifier in log.verifiers] for log in logs}
            found = _verified(body.receipt, keys)
            event = opened(found.payload)
            policy = await ledger.policies.get(connection, ledger.log_id, event.policy)
        told = sheet(event, policy, body.language, Place(found.checkpoint.origin, found.index))
        return _ENCODER.encode({
            "origin": found.checkpoint.origin,
            "index": found.index,
            "record": msgspec.Raw(receipt(event, policy)),
            "text": as_text(told) if body.format == "text" else None,
            "html": as_html(told) if body.format == "html" else None,
        })  # fmt: skip


def _verified(text: str, keys: dict[str, list[str]]) -> Receipt:
    """A receipt that one of the ledger's epochs signed; each is a log of its own."""
    try:
        origin = Proof.parse(text).note.partition("\n")[0]
        if origin not in keys:
            raise NoteError("it is of another ledger")  # noqa: TRY301 -- one place says what it means
        return verify(text, Trust.parse(trusting(keys[origin])))
    except NoteError as error:
        raise Invalid(
            "The receipt proves nothing here.", (FieldError("/receipt", f"proves nothing: {error}"),)
        ) from None


def opened(payload: bytes) -> Event:
    """The event in a receipt.

    Raises:
        Invalid: it is about something else.
    """
    try:
        return _EVENT.decode(payload)
    except msgspec.ValidationError:
        wrong = FieldError("/receipt", "is about a link; there is a record of what a person decided only")
        raise Invalid("There is no record of this.", (wrong,)) from None


def fits(event: Event, policy: Policy) -> bool:
    """Whether a policy may be the one that an event names: it has the purposes, and the notice as it was shown."""
    if any(record.purpose not in (*policy.purposes, "*") for record in event.records):
        return False
    if event.notice is None:
        return True
    notice = policy.notices.get(event.notice.id, {}).get(event.notice.version)
    return notice is not None and event.notice.hash == notice.hash
