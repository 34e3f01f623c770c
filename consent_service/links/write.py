"""Making, ending and annulling links. Each is one entry of the ledger, written while its head is held."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, cast
from uuid import UUID

import msgspec

from consent_service import db, decode, ids, jcs, revocations
from consent_service.auth import Credential, is_of_token
from consent_service.decisions import open_conflicts
from consent_service.errors import Forbidden, NotFound, Taken
from consent_service.ledger import (
    Growth,
    Ledger,
    Ledgers,
    Opening,
    Revision,
    Tip,
    append,
    issue,
    read_head,
    strands,
)
from consent_service.links.model import (
    AnnulBody,
    Challenge,
    ChallengeBody,
    Change,
    EndBody,
    LinkBody,
    Linked,
    LinkEvent,
    LinkKind,
    OpenConflict,
)
from consent_service.links.proof import CHALLENGE_S, Challenges, Claim, Prover
from consent_service.policies import GRADES, Policy
from consent_service.subjects import Subject
from consent_service.tenures import find, person
from consent_service.vault import Place

MAX_LINKS = 64
"""How many identifiers may be linked to one account at a time, and to how many groups or guardians one may belong."""
_TICK = timedelta(microseconds=1)
_ENCODER = msgspec.json.Encoder()
_PAYLOAD = msgspec.json.Encoder(order="sorted")
_NOBODY = Subject("nobody", "-")
"""Until the strand of a side is known."""


class LinkRow(msgspec.Struct, frozen=True):
    """A row of `link`."""

    link: UUID
    kind: LinkKind
    identifier: bytes
    anchor: bytes
    """Empty once it is erased."""
    tenure: int
    base: int
    shared: bool
    grade: int
    began_at: datetime
    until: datetime | None
    ended_at: datetime | None
    annulled_at: datetime | None
    annul_asked: str | None

    def is_active(self, now: datetime) -> bool:
        """Whether it holds at a moment."""
        return self.ended_at is None and self.annulled_at is None and (self.until is None or self.until > now)


READ_LINKS = db.many("links", "read_links", LinkRow)


_READ_LINK = db.one("links", "read_link", LinkRow)
_ADD_LINK = db.execute("links", "add_link")
_END_LINK = db.execute("links", "end_link")
_ASK_ANNULMENT = db.execute("links", "ask_annulment")
_ANNUL_LINK = db.execute("links", "annul_link")
_ADD_CONFLICTS = db.execute("links", "add_conflicts")


class Linker:
    """Links, of all tenants."""

    def __init__(self, ledgers: Ledgers, prover: Prover, challenges: Challenges) -> None:
        self._ledgers = ledgers
        self._prover = prover
        self._challenges = challenges

    async def challenge(self, raw: bytes, credential: Credential) -> bytes:
        """What a log-in must carry to prove a link (`ChallengeBody` to `Challenge`)."""
        body = decode.body(raw, ChallengeBody)
        self._prover.demand_possession(credential, body.identifier, body.proof)
        nonce, expires_at = self._challenges.give(credential.log_id, body.identifier)
        return _ENCODER.encode(Challenge(nonce, expires_at))

    async def link(self, raw: bytes, credential: Credential) -> bytes:
        """Link an identifier (`LinkBody` to `Linked`); the link that there is already is answered as it stands.

        Raises:
            Taken: it is linked to another account, or the two cannot be linked as others are linked to them.
            Invalid, Forbidden, Unauthenticated, Unavailable: see there.
        """
        body = decode.body(raw, LinkBody, unique=True)
        if body.evidence is not None:
            jcs.canonical(body.evidence, "/evidence")  # refused before anything is done
        ledger = self._ledgers.of(credential.log_id)
        async with ledger.connection() as connection:
            head = await read_head(connection, ledger.log_id)
            policy = await ledger.policies.get(connection, ledger.log_id, head.policy)
        claim = await self._prover.prove(policy, credential, body)
        async with ledger.connection() as connection:
            async with connection.transaction():
                change = await _Change.begin(ledger, connection, credential)
                row, conflicts = await change.link(claim, body)
                linked = await change.finish(row, conflicts)
            return _ENCODER.encode(await change.proved(linked))

    async def end(self, raw: bytes, credential: Credential, link: str) -> bytes:
        """End a link (`EndBody` to `Linked`): what was permitted through it stops; a no keeps holding."""
        body = decode.body(raw, EndBody)
        ledger = self._ledgers.of(credential.log_id)
        async with ledger.connection() as connection:
            async with connection.transaction():
                change = await _Change.begin(ledger, connection, credential)
                linked = await self._end(change, credential, body, link)
            return _ENCODER.encode(await change.proved(linked))

    async def _end(self, change: _Change, credential: Credential, body: EndBody, link: str) -> Linked:
        row, by_device = await change.read(link), False
        if credential.kind == "person":  # whose lost telephone cannot prove anything
            if not row.anchor or await change.name(row.anchor) != Subject("login", credential.login):
                raise NotFound("There is no such link.")
        elif "links" not in credential.scopes or credential.kind == "publishable":
            identifier = await change.name(row.identifier)
            if not self._prover.has(credential, identifier, body.proof):  # nor does it learn that there is one
                raise NotFound("There is no such link of the device whose token was sent as `proof`.")
            by_device = True
        if row.is_active(change.now):
            await _END_LINK(change.connection, change.ledger.log_id, row.link, change.now)
            row = msgspec.structs.replace(row, ended_at=change.now)
            await change.note(row, "ended")
        answer = await change.finish(row, [])
        return msgspec.structs.replace(answer, anchor=None) if by_device else answer

    async def annul(self, raw: bytes, credential: Credential, link: str) -> tuple[int, bytes]:
        """Annul a link as false (`AnnulBody` to `Linked`): 202 once one officer asks, 200 when another agrees."""
        body = decode.body(raw, AnnulBody)
        ledger = self._ledgers.of(credential.log_id)
        if credential.kind != "officer":
            raise Forbidden("Only officers annul links; whoever made one can end it.")
        async with ledger.connection() as connection:
            async with connection.transaction():
                change = await _Change.begin(ledger, connection, credential)
                status, linked = await self._annul(change, credential, body, link)
            return status, _ENCODER.encode(await change.proved(linked))

    async def _annul(self, change: _Change, credential: Credential, body: AnnulBody, link: str) -> tuple[int, Linked]:
        row = await change.read(link)
        if row.annulled_at is None and row.annul_asked in (None, credential.id):
            if row.annul_asked is None:
                await _ASK_ANNULMENT(change.connection, change.ledger.log_id, row.link, credential.id)
                row = msgspec.structs.replace(row, annul_asked=credential.id)
                await change.note(row, "annulment_asked", reason=body.reason)
            return 202, await change.finish(row, [])
        if row.annulled_at is None:
            if is_of_token(row.annul_asked or "") != is_of_token(credential.id):
                raise Forbidden("Both officers come with keys, or both with tokens: else they may be one person.")
            await _ANNUL_LINK(change.connection, change.ledger.log_id, row.link, change.now)
            row = msgspec.structs.replace(row, annulled_at=change.now)
            await change.note(row, "annulled", reason=body.reason)
        return 200, await change.finish(row, [])


class _Change:
    """One transaction that holds the head."""

    def __init__(
        self, ledger: Ledger, connection: db.Connection, credential: Credential, tip: Tip, policy: Policy
    ) -> None:
        self.ledger = ledger
        self.connection = connection
        self.credential = credential
        self.policy = policy
        self.tip = tip
        self.now = tip.now + _TICK
        """Later than whatever was recorded, so that it can be told what was recorded before a link."""
        self.openings: list[Opening] = []
        """Of the entries to be appended."""
        self.receipt_of = 0
        """Which of them the answer has the receipt of."""
        self.growth: Growth | None = None

    @classmethod
    async def begin(cls, ledger: Ledger, connection: db.Connection, credential: Credential) -> _Change:
        """Takes the head."""
        tip = await ledger.hold(connection)
        policy = await ledger.policies.get(connection, ledger.log_id, tip.policy)
        return cls(ledger, connection, credential, tip, policy)

    async def read(self, link: str) -> LinkRow:
        """A link by the id in an address."""
        try:
            row = await _READ_LINK(self.connection, self.ledger.log_id, UUID(link))
        except ValueError:
            row = None
        if row is None:
            raise NotFound("There is no such link.")
        return row

    async def link(self, claim: Claim, body: LinkBody) -> tuple[LinkRow, list[OpenConflict]]:
        """Makes a link that was proved, unless it is there."""
        log_id, hasher = self.ledger.log_id, self.ledger.hasher
        identifier, anchor = hasher.identifier(claim.identifier), hasher.identifier(claim.anchor)
        rows = await READ_LINKS(self.connection, log_id, [identifier, anchor])
        active = [row for row in rows if row.is_active(self.now)]
        before = next((row for row in active if _is_same(row, claim.kind, identifier, anchor)), None)
        if claim.login is not None:
            await revocations.demand_live(self.connection, self.ledger, claim.login)
        if before is not None and before.until == claim.until:
            await self._use(claim)  # or it could be presented again when the link has ended
            return before, []
        for row in active:
            if row.kind == claim.kind == "identity" and row.identifier == identifier and row is not before:
                if not body.replace:
                    raise Taken("The identifier is linked to another account. End that link, or send `replace`.")
                before = row
        self._demand_apart(active, claim.kind, identifier, anchor)
        if claim.kind == "identity":
            self._demand_flat(active, identifier, anchor)
        self._demand_room(active, claim.kind, identifier, anchor)
        if not await self._use(claim):
            raise Forbidden("This challenge was answered before. Begin again at /v1/links/challenge.")
        if before is not None:  # another end, or another account
            await _END_LINK(self.connection, log_id, before.link, self.now)
            await self.note(msgspec.structs.replace(before, ended_at=self.now), "ended")
            self.now += _TICK
        return await self._make(claim, body, identifier, anchor, rows)

    async def _make(
        self, claim: Claim, body: LinkBody, identifier: bytes, anchor: bytes, rows: Sequence[LinkRow]
    ) -> tuple[LinkRow, list[OpenConflict]]:
        log_id = self.ledger.log_id
        mine = [r.tenure for r in rows if r.kind == "identity" and r.identifier == identifier and r.annulled_at is None]
        tenure = await self._strand(claim.identifier, identifier, rows, new=claim.kind == "identity")
        await self._strand(claim.anchor, anchor, rows, new=False)
        row = LinkRow(
            link=ids.event_id(), kind=claim.kind, identifier=identifier, anchor=anchor,
            tenure=tenure if claim.kind == "identity" else 0, base=max(mine, default=0),
            shared=claim.identifier.type in self.policy.tenant.shared, grade=claim.grade, began_at=self.now,
            until=claim.until, ended_at=None, annulled_at=None, annul_asked=None,
        )  # fmt: skip
        await _ADD_LINK(
            self.connection, log_id, row.link, row.kind, identifier, anchor, row.tenure, row.base, row.shared,
            row.grade, row.began_at, row.until,
        )  # fmt: skip
        await self.note(row, "linked", evidence=body.evidence)
        conflicts = await self._conflicts(anchor) if claim.kind == "identity" else []
        if conflicts:
            purposes, channels = [c.purpose for c in conflicts], [c.channel for c in conflicts]
            await _ADD_CONFLICTS(self.connection, log_id, row.link, purposes, channels, self.now)
        return row, conflicts

    def _demand_apart(self, active: Sequence[LinkRow], kind: LinkKind, identifier: bytes, anchor: bytes) -> None:
        """A group is nobody's identifier: else its yes would be the yes of one of its members."""
        if kind == "identity" and any(row.kind == "group" and row.anchor == identifier for row in active):
            raise Taken("The identifier is that of a group. Nobody is a group: link its members to it.")
        if kind == "group" and any(row.kind == "identity" and row.identifier == anchor for row in active):
            raise Taken("That group is linked to an account as its identifier. End that link first.")

    def _demand_flat(self, active: Sequence[LinkRow], identifier: bytes, anchor: bytes) -> None:
        """An account is linked to nothing, and what is linked to an account is none: nothing is linked in chains."""
        links = [row for row in active if row.kind == "identity"]
        if any(row.anchor == identifier for row in links):
            raise Taken("The identifier is an account that others are linked to. Link those to the new account.")
        if any(row.identifier == anchor for row in links):
            raise Taken("The account is itself linked to another one. Link to that one.")

    def _demand_room(self, active: Sequence[LinkRow], kind: LinkKind, identifier: bytes, anchor: bytes) -> None:
        same = [row for row in active if row.kind == kind]
        crowd = [r for r in same if (r.anchor == anchor if kind == "identity" else r.identifier == identifier)]
        if len(crowd) >= MAX_LINKS:
            raise Taken(f"There are {MAX_LINKS} such links already. End one that is no longer true.")

    async def _use(self, claim: Claim) -> bool:
        """Whether the challenge, if there is one, is answered for the first time."""
        if claim.login is None:
            return True
        what = self.ledger.hasher.once("nonce", claim.login.nonce or "")
        expires_at = self.now + timedelta(seconds=CHALLENGE_S)
        return await revocations.use_once(self.connection, self.ledger, what, expires_at)

    async def _strand(self, subject: Subject, identifier: bytes, rows: Sequence[LinkRow], *, new: bool) -> int:
        """The strand in which an identifier is from now on; made where it is `new`, or none is its own."""
        mine = {row.tenure: row for row in rows if row.kind == "identity" and row.identifier == identifier}
        current = await strands.current(self.connection, self.ledger, identifier)
        if current is not None and not new and not self._is_over(mine.get(current.tenure)):
            return current.tenure
        tenure = 1 + max([0 if current is None else current.tenure, *mine])  # an erasure may have left a link alone
        await strands.begin(self.connection, self.ledger, subject, tenure)
        return tenure

    def _is_over(self, began: LinkRow | None) -> bool:
        """Whether the link that began a strand has ended: then the strand is somebody else's, and goes with them."""
        return began is not None and began.annulled_at is None and not began.is_active(self.now)

    async def _conflicts(self, account: bytes) -> list[OpenConflict]:
        _, members, standing = await find(self.connection, self.ledger.log_id, [account], [False], self.now)
        who = person(members[account], standing)
        found = open_conflicts(self.policy, who.states, self.policy.purposes, self.now, who.ties)
        return [OpenConflict(purpose, channel) for purpose, channel in found]

    async def note(
        self, row: LinkRow, change: Change, *, evidence: dict[str, Any] | None = None, reason: str | None = None
    ) -> None:
        """Writes the events, one for each side."""
        self.receipt_of = len(self.openings)
        shown = None if evidence is None else jcs.canonical(evidence, "/evidence")
        told = LinkEvent(
            event=ids.event_id(), recorded_at=self.now, link=row.link, change=change, kind=row.kind, side="identifier",
            subject=_NOBODY, grade=GRADES[row.grade], until=row.until,
            evidence=cast("dict[str, Any] | None", shown), reason=reason,
            credential=self.credential.id,
        )  # fmt: skip
        await self._tell(row, row.identifier, row.tenure, told)
        if row.anchor:
            other = msgspec.structs.replace(told, event=ids.event_id(), side="anchor", evidence=None, reason=None)
            await self._tell(row, row.anchor, 0, other)

    async def _tell(self, row: LinkRow, identifier: bytes, tenure: int, told: LinkEvent) -> None:
        """The event of one side, in the strand that the link began, or else in one that is its own."""
        if not tenure:
            rows = await READ_LINKS(self.connection, self.ledger.log_id, [identifier])
            tenure = await self._strand(await self.name(identifier), identifier, rows, new=False)
        place = Place(self.ledger.log_id, identifier, tenure)
        kind = strands.Kind("link", told.change, row.grade, row.link)
        index = self.tip.size + len(self.openings)
        self.openings.append(await strands.tell(self.connection, self.ledger, place, index, kind, told))

    async def name(self, identifier: bytes) -> Subject:
        """An identifier, as it was given."""
        strand = await self._current(identifier)
        return strands.name(
            strand, self.ledger.vault.open(Place(self.ledger.log_id, identifier, strand.tenure), strand.key)
        )

    async def _current(self, identifier: bytes) -> strands.StrandRow:
        strand = await strands.current(self.connection, self.ledger, identifier)
        if strand is None:
            raise NotFound("There is no such identifier.")
        return strand

    async def finish(self, row: LinkRow, conflicts: list[OpenConflict]) -> Linked:
        """Appends the entries; the link as it now stands."""
        revision = self.tip.revision
        if self.openings:
            entries = [opening.entry for opening in self.openings]
            self.growth = await append(self.connection, self.ledger.log_id, self.tip, entries, self.now)
            revision = Revision(self.tip.epoch, self.growth.frontier.size)
        reuse = max((purpose.reuse_window for purpose in self.policy.purposes.values()), default=timedelta(0))
        return Linked(
            link=row.link, kind=row.kind, identifier=await self.name(row.identifier),
            anchor=await self.name(row.anchor) if row.anchor else None, grade=GRADES[row.grade],
            since=row.began_at, until=row.until,
            ended_at=row.ended_at, annulled_at=row.annulled_at, annulment_asked=row.annul_asked is not None,
            conflicts=conflicts, rev=str(revision), effective_by=self.now + reuse, receipt=None,
        )  # fmt: skip

    async def proved(self, linked: Linked) -> Linked:
        """The answer with its receipt, now that all of it is committed: nothing is signed before."""
        growth = self.growth
        if growth is None:
            return linked
        index = growth.first + self.receipt_of
        log = await self.ledger.log(self.connection, self.tip)
        checkpoint = self.ledger.sign(log, growth.frontier.size, growth.root)
        receipt = issue(index, growth.proof(index), self.openings[self.receipt_of], checkpoint)
        return msgspec.structs.replace(linked, receipt=receipt)


def _is_same(row: LinkRow, kind: LinkKind, identifier: bytes, anchor: bytes) -> bool:
    return row.kind == kind and row.identifier == identifier and row.anchor == anchor
