"""Answers with their receipts: to what was just written, and once more to what was written before.

Receipts are not stored: for the same place in the same tree they come out the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from consent_service import db
from consent_service.ledger import Head, Ledger, issue, prove
from consent_service.ledger.entry import tag
from consent_service.ledger.receipt import Opening
from consent_service.vault import Place, answer_to


class OpeningRow(msgspec.Struct, frozen=True):
    """An event, for which a receipt is made again."""

    event: UUID
    sequence: int
    payload: bytes


class Earlier(NamedTuple):
    """An act that was written before."""

    identifier: bytes
    row: Any
    """With the columns `answer…`, whichever statement found it."""


_ENCODER = msgspec.json.Encoder()
_READ_OPENING = db.one("ledger", "read_opening", OpeningRow)


def told(answer: bytes, receipt: str) -> bytes:
    """An answer (`Recorded`, whose last member is the receipt) with its receipt."""
    return answer.removesuffix(b"null}") + _ENCODER.encode(receipt) + b"}"


async def again(connection: db.Connection, ledger: Ledger, head: Head, earlier: Earlier) -> bytes:
    """The answer that an act got before, with the receipt that it got."""
    row = earlier.row
    key = ledger.vault.open(Place(ledger.log_id, earlier.identifier, row.answer_tenure), row.answer_key)
    found = await _READ_OPENING(connection, ledger.log_id, row.answer_idx)
    assert found is not None, "an answer is written with its event"  # noqa: S101 -- one statement writes both
    payload = msgspec.Raw(key.open(found.event.bytes, found.payload))
    opening = Opening(payload, key.salt(found.event), tag(key.tags, found.sequence))
    root, hashes = await prove(connection, ledger.log_id, row.answer_idx, row.answer_size)
    checkpoint = (await ledger.log(connection, head)).checkpoint(row.answer_size, root)
    return told(key.open(answer_to(row.answer_event), row.answer), issue(row.answer_idx, hashes, opening, checkpoint))
