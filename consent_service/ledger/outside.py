"""Who else knows what the ledgers sign: the anchor, witnesses, an authority that dates. All of them as configured."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from consent_service import log, settings
from consent_service.ledger import timestamp, witness
from consent_service.ledger.anchor import Anchor, open_anchor
from consent_service.ledger.note import read
from consent_service.ledger.receipt import Log
from consent_service.ledger.trust import Trust
from consent_service.ledger.witness import Prove, Witnesses
from consent_service.settings import Settings

_LOG = log.get("publisher")


class Confirmed(NamedTuple):
    """A checkpoint after everybody was asked."""

    note: str
    """With the cosignatures."""
    token: bytes | None
    """The authority's answer over the note (RFC 3161)."""
    is_witnessed: bool
    """Whether as many witnesses saw it as the file of witnesses asks for."""


class Outside(NamedTuple):
    """What there is of it."""

    anchor: Anchor | None = None
    witnesses: Witnesses | None = None
    trust: Trust | None = None
    """Says how many witnesses it takes."""
    authority: str | None = None
    """Address of the one that dates."""

    async def confirm(self, signer: Log, note: str, prove: Prove, *, dated: bool) -> Confirmed:
        """Have a checkpoint cosigned and, if it is to be, dated. Who cannot be reached is logged, and done without."""
        is_witnessed = True
        if self.witnesses is not None and self.trust is not None:
            note, told = await self.witnesses.cosign(note, prove)
            for one in told:
                if one.what != "cosigned":
                    _LOG.warning("not_witnessed", witness=one.witness, outcome=one.what, status=one.status)
            known = (*signer.verifiers, *self.trust.witnesses.values())
            is_witnessed = self.trust.is_seen({signed.by for signed in read(note, known).signatures})
        token = None
        if dated and self.authority is not None:
            try:
                token = await timestamp.stamp(note, self.authority)
            except timestamp.StampError:
                _LOG.warning("not_dated")
        return Confirmed(note, token, is_witnessed)


@asynccontextmanager
async def reaching(chosen: Settings) -> AsyncIterator[Outside]:
    """Everybody whom the settings name, and the connections to them.

    Raises:
        SetupError: somebody cannot be used as named.
    """
    anchor, trust, witnesses = open_anchor(settings.anchor(chosen)), None, None
    if chosen.timestamps is not None:
        timestamp.demand_usable(chosen.timestamps)
    async with AsyncExitStack() as stack:
        if chosen.witnesses is not None:
            trust = witness.load(Path(chosen.witnesses))
            witnesses = await stack.enter_async_context(witness.asking(trust))
        yield Outside(anchor, witnesses, trust, chosen.timestamps)
