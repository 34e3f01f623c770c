"""Who looked: an officer who reads about a person leaves an entry in the ledger, in the strand of that person.

It is part of the person's history, and goes when the person is erased. What an officer reads that is about nobody in
particular, or about somebody who is not known here, stands in a strand of the officer's own.
"""

from __future__ import annotations

from typing import Literal
from uuid import UUID

import msgspec

from consent_service import ids, log
from consent_service.auth import Credential
from consent_service.errors import Frozen
from consent_service.ledger import Ledgers, append, strands
from consent_service.states import Moment
from consent_service.subjects import Subject
from consent_service.vault import Place

What = Literal["state", "history", "links", "conflicts"]
_OFFICER = ":officer"
"""Namespace of the officers' own strands; no caller can write it."""
_LOG = log.get("reads")


class ReadEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One look, whole; its canonical JSON is the payload that the ledger commits to."""

    event: UUID
    recorded_at: Moment
    subject: Subject
    """In whose strand it stands: whom it was about, else the officer."""
    read: What
    credential: str
    """Of the officer."""


class _About(msgspec.Struct, frozen=True):
    """Whom a body asks about."""

    subject: Subject | None = None


_ABOUT = msgspec.json.Decoder(_About)


class Watch:
    """Notes what officers read, of all tenants."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers

    async def note(self, credential: Credential, what: What, raw: bytes) -> None:
        """Write down that an officer asked with this body, before the answer is shown; of others nothing.

        While the ledger is frozen reads go on, and only the log tells of them.
        """
        if credential.kind != "officer":
            return
        ledger = self._ledgers.of(credential.log_id)
        own, asked = Subject(_OFFICER, credential.id), _ABOUT.decode(raw).subject
        try:
            async with ledger.connection() as connection, connection.transaction():
                tip = await ledger.hold(connection)
                about = asked or own
                strand = await strands.current(connection, ledger, ledger.hasher.identifier(about))
                if strand is None and about != own:
                    about = own
                    strand = await strands.current(connection, ledger, ledger.hasher.identifier(own))
                if strand is None:
                    await strands.begin(connection, ledger, own, 1)
                told = ReadEvent(
                    event=ids.event_id(), recorded_at=tip.now, subject=about, read=what, credential=credential.id
                )
                place = Place(ledger.log_id, ledger.hasher.identifier(about), 1 if strand is None else strand.tenure)
                kind = strands.Kind("read", what)
                opening = await strands.tell(connection, ledger, place, tip.size, kind, told)
                await append(connection, ledger.log_id, tip, [opening.entry], tip.now)
        except Frozen:
            _LOG.warning("read_while_frozen", log_id=ledger.log_id, credential=credential.id, operation=what)
