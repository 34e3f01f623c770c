"""Answers with their receipts: to what was just written, and once more to what was written before.

Receipts and records are not stored: for the same place in the same tree, and for the same event and policy, they come
out the same.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from consent_service import db, records
from consent_service.errors import Erased
from consent_service.ledger import Head, Ledger, issue, prove
from consent_service.ledger.entry import tag
from consent_service.ledger.receipt import Opening
from consent_service.policies import Policy
from consent_service.states import Event
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
_EVENT = msgspec.json.Decoder(Event)
_OPEN = b'"receipt":null,"record":null}'
"""How an answer (`Recorded`) ends as it is kept."""
_READ_OPENING = db.one("ledger", "read_opening", OpeningRow)


class Told(NamedTuple):
    """An answer (`Recorded` as it is kept), and what makes it whole."""

    answer: bytes
    receipt: str
    event: Event
    policy: Policy
    """That the event names."""

    def encode(self, *, minimal: bool = False) -> bytes:
        """The answer with its receipt and, unless it is to be `minimal`, the record."""
        record = b"null" if minimal else records.receipt(self.event, self.policy)
        start = self.answer.removesuffix(_OPEN)
        return b"".join((start, b'"receipt":', _ENCODER.encode(self.receipt), b',"record":', record, b"}"))


async def again(connection: db.Connection, ledger: Ledger, head: Head, earlier: Earlier) -> Told | Erased:
    """The answer that an act got before, with the receipt and the record that it got; or that it was erased since."""
    row = earlier.row
    key = ledger.vault.open(Place(ledger.log_id, earlier.identifier, row.answer_tenure), row.answer_key)
    found = await _READ_OPENING(connection, ledger.log_id, row.answer_idx)
    if found is None:
        return Erased()
    payload = msgspec.Raw(key.open(found.event.bytes, found.payload))
    opening = Opening(payload, key.salt(found.event), tag(key.tags, found.sequence))
    root, hashes = await prove(connection, ledger.log_id, row.answer_idx, row.answer_size)
    log = await ledger.log(connection, head)
    checkpoint = ledger.sign(log, row.answer_size, root)
    event = _EVENT.decode(payload)
    policy = await ledger.policies.get(connection, ledger.log_id, event.policy)
    receipt = issue(row.answer_idx, hashes, opening, checkpoint)
    return Told(key.open(answer_to(row.answer_event), row.answer), receipt, event, policy)
