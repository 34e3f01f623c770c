"""What one commit writes, gathered act by act: each act sees what the acts before it in the same batch left behind."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple, cast
from uuid import UUID

import msgspec
from msgspec.structs import replace

from consent_service import ids
from consent_service.consents.answer import Holding, holding
from consent_service.consents.model import Shown
from consent_service.consents.prepare import Act, Prepared
from consent_service.consents.receipts import Earlier, Told
from consent_service.decisions import Ask, decide, open_conflicts
from consent_service.errors import ConsentError, Erased, FieldError, Invalid, KeyReused
from consent_service.ledger import Growth, Head, Ledger, Log, Opening, Revision, issue
from consent_service.ledger.entry import tag
from consent_service.ledger.tree import Frontier, leaf_hash
from consent_service.policies import GRADES
from consent_service.states import (
    ANY,
    CARRIED,
    GRANTS,
    Event,
    EventNotice,
    EventRecord,
    Slot,
    Standing,
    State,
    StateKey,
    fold,
    slot_of,
)
from consent_service.subjects import Subject, normal_contact
from consent_service.tenures import ALONE, Member, Person, own, person, speaks_for
from consent_service.vault import VALUE, Place, StrandKey, answer_to, contact_of

MAX_CONTACTS = 32
"""How many contacts one purpose may hold for, of one identifier."""
_NOES = (Slot.BLOCK, Slot.OBJECTION, Slot.RESTRICTION)
_BRINGING = GRANTS | {"requested", "applies"}
"""What may allow something, now or once it is confirmed."""


class PolicyMoved(ConsentError):
    """Another policy came into force while an act waited. It is checked again."""


class Repeated(ConsentError):
    """This row of a list was recorded before. Nothing is to be done."""


class Suppressed(ConsentError):
    """Whom this row is about was erased. Advertising comes back by a fresh opt-in of the person, which no list is."""


class BatchRow(msgspec.Struct, frozen=True):
    """What is known about one act of a batch before it is written."""

    frontier: bytes
    """Of the tree; with the first act of the batch only."""
    tenure: int
    """The identifier's current strand, or a later one that a link began and an erasure took; 0 where it has none."""
    tenured: bool
    """Whether it was begun by a link."""
    events: int
    key: bytes | None
    """Of that strand, wrapped."""
    body: bytes | None
    """Of an act recorded before under the same idempotency key; so for the following."""
    answer: bytes | None
    answer_event: UUID | None
    answer_tenure: int | None
    answer_idx: int | None
    answer_size: int | None
    answer_key: bytes | None


class Strand(NamedTuple):
    """The strand that an act goes to."""

    tenure: int
    key: StrandKey
    events: int
    new: bool


class Batch:
    """Everything that one statement writes."""

    def __init__(
        self,
        ledger: Ledger,
        head: Head,
        frontier: bytes,
        members: Mapping[bytes, list[Member]],
        standing: dict[bytes, Standing],
    ) -> None:
        self.ledger = ledger
        self.head = head
        self.frontier = Frontier.read(head.size, frontier)
        self.standing = standing
        """By identifier: the rows that stand."""
        self.persons = {m.member: own for own in members.values() for m in own if m.kind in ("self", "identity")}
        self.stored = {(identifier, key) for identifier, rows in standing.items() for key in rows}
        """The keys of the rows that stood before: an insert need not look for the others."""
        self.strands: dict[bytes, tuple[Subject, Strand]] = {}
        self.contacts: dict[tuple[bytes, int, bytes], bytes] = {}
        self.changed: dict[tuple[bytes, StateKey], tuple[int, State]] = {}
        """The rows to write, each with its event's place in `events`."""
        self.conflicts: set[tuple[UUID, str, str]] = set()
        """That are open since: by link, purpose and channel."""
        self.answered: dict[bytes, tuple[bytes, int]] = {}
        """By idempotency key: the body, and the place of its event in `events`."""
        self.events: list[tuple[Any, ...]] = []
        self.openings: list[Opening] = []
        self.entries: list[bytes] = []
        """Of the ledger, one for each event, and what opens each."""
        self.answers: list[bytes] = []
        """To the events, still without their receipts."""
        self.firsts: dict[tuple[Any, ...], Holding] = {}
        """What holds after a first act, by what it said."""
        self.said: list[tuple[Event, Act]] = []
        """The events as such, each with the act that it tells of."""

    def add(self, act: Act, known: BatchRow) -> int | Earlier | Exception:
        """Write an act, as which event of this batch; or find that it was written before."""
        if (before := self.answered.get(act.key)) is not None:
            return before[1] if before[0] == act.body_hash else KeyReused()
        members = self.persons.get(act.identifier) or [_stranger(act)]
        if act.listed and self._is_suppressed(act, members):
            return Suppressed("The person was erased; advertising comes back by a fresh opt-in, which no list is.")
        if known.body is not None:
            return _before(act, known)
        if act.policy_version != self.head.policy:
            return PolicyMoved()
        wrong = self._crowded(act) or _unguarded(act, members)
        if wrong is not None:
            return Invalid("Some fields cannot be accepted.", (wrong,))
        self._write(act, known, members)
        place = len(self.events) - 1
        self.answered[act.key] = act.body_hash, place
        return place

    def _is_suppressed(self, act: Act, members: list[Member]) -> bool:
        """Whether an act would bring back to advertising whom an erasure took out of it (GDPR Art. 17, 21(3))."""
        purposes = act.policy.purposes
        if not any(record.status in _BRINGING and purposes[record.purpose].direct_marketing for record in act.records):
            return False
        rows = [*person(members, self.standing).states]
        for address in act.addresses:
            rows += self.standing.get(address, {}).values()
        now = self.head.now
        return any(row.slot == Slot.TOMBSTONE and (row.expires_at is None or now < row.expires_at) for row in rows)

    def _crowded(self, act: Act) -> FieldError | None:
        """Rows of one identifier are read and weighed together, so their number has an end."""
        named = {(record.purpose, record.contact) for record in act.records if record.contact}
        if not named:
            return None
        named |= {(key[0], key[2]) for key in self.standing.get(act.identifier, ()) if key[2]}
        for purpose, count in Counter(purpose for purpose, _ in named).items():
            if count > MAX_CONTACTS:
                return FieldError(
                    "/records", f"`{purpose}` would hold for more than {MAX_CONTACTS} contacts of one subject"
                )
        return None

    def _write(self, act: Act, known: BatchRow, members: list[Member]) -> None:
        event, now = ids.event_id(), self.head.now
        strand = self._strand(act, known, members)
        before = person(members, self.standing)
        records = tuple([self._settle(act, record, before) for record in act.records])
        guardian = next((m.link for m in members if m.kind == "guardian" and m.member == act.guardian), None)
        states = [_state(act, record, strand.tenure, event, before, guardian, now) for record in records]
        for record, state in zip(records, states, strict=True):
            self._put(state)
            for carried in _carried(act, state, members):
                self._put(carried)
            if record.contact_value is not None:
                place = (act.identifier, strand.tenure, record.contact)
                if place not in self.contacts:
                    value = normal_contact(record.contact_value).encode()
                    self.contacts[place] = strand.key.seal(contact_of(record.contact), value)
        self._note_conflicts(act, records, members)
        revision = Revision(self.head.epoch, self.head.size + len(self.events) + 1)
        answer = _ANSWER.encode(self._holding(act, records, states, before, members).recorded(event, revision, now))
        shown = act.notice or _NO_NOTICE
        said = _event(act, records, event, guardian, now)
        payload = _PAYLOAD.encode(said)
        opening = Opening(msgspec.Raw(payload), strand.key.salt(event), tag(strand.key.tags, strand.events))
        self.openings.append(opening)
        self.entries.append(opening.entry)
        self.answers.append(answer)
        self.said.append((said, act))
        self.events.append((
            event, act.identifier, strand.tenure, strand.events, ",".join([r.purpose for r in records]),
            ",".join([r.status for r in records]), act.credential, act.grade,
            strand.key.seal(event.bytes, payload), act.key, act.body_hash,
            strand.key.seal(answer_to(event), answer), shown.id, shown.version, shown.language,
            act.method or "",
        ))  # fmt: skip

    def receipts(self, log: Log, growth: Growth) -> Iterator[Told]:
        """The answers to the events, under one checkpoint for all of them. Rows of a list get no receipts."""
        checkpoint = self.ledger.sign(log, growth.frontier.size, growth.root)
        made = zip(self.answers, self.openings, self.said, strict=True)
        for index, (answer, opening, (event, act)) in enumerate(made, growth.first):
            receipt = "" if act.listed else issue(index, growth.proof(index), opening, checkpoint)
            yield Told(answer, receipt, event, act.policy)

    def _note_conflicts(self, act: Act, records: Sequence[Prepared], members: list[Member]) -> None:
        """What is said late may contradict what was said before two identifiers were linked."""
        links = [(m.began_at, m.link) for m in members if m.kind == "identity" and m.link is not None]
        if not links:
            return
        who, purposes = person(members, self.standing), act.policy.purposes
        named = {purpose for r in records for purpose in act.policy.family.get(r.purpose, purposes)}
        _, link = max(links, key=lambda one: one[0] or self.head.now)
        found = open_conflicts(act.policy, who.states, sorted(named), self.head.now, who.ties)
        self.conflicts |= {(link, purpose, channel) for purpose, channel in found}

    def _holding(
        self, act: Act, records: tuple[Prepared, ...], states: list[State], before: Person, members: list[Member]
    ) -> Holding:
        """What holds after an act. Of people who decide for the first time, many say the same in the same moment."""
        if before.states or before.ties is not ALONE:
            return holding(act, records, states, self._told(act, members), self.head.now)
        alike = (records, act.notice, act.method, act.grade)
        found = self.firsts.get(alike)
        if found is None:
            found = self.firsts[alike] = holding(act, records, states, self._told(act, members), self.head.now)
            return found
        return found.of(states[0].event)

    def _told(self, act: Act, members: list[Member]) -> Person:
        """The person whose state the answer tells: all of it to who vouches for it, to a device what is its own."""
        if act.whole:
            return person(members, self.standing)
        return own(next(m for m in members if m.member == act.identifier), self.standing)

    def _strand(self, act: Act, known: BatchRow, members: list[Member]) -> Strand:
        """The strand of this event, with the event counted; a new one where the last tenure is over."""
        current = self.strands.get(act.identifier)
        if current is not None:
            strand = current[1]._replace(events=current[1].events + 1)
        elif known.key is None or (known.tenured and not _linked(act.identifier, members)):
            tenure = known.tenure + 1
            strand = Strand(tenure, self.ledger.vault.make(self._place(act.identifier, tenure)), 1, new=True)
        else:
            key = self.ledger.vault.open(self._place(act.identifier, known.tenure), known.key)
            strand = Strand(known.tenure, key, known.events + 1, new=False)
        self.strands[act.identifier] = act.subject, strand
        return strand

    def _place(self, identifier: bytes, tenure: int) -> Place:
        return Place(self.ledger.log_id, identifier, tenure)

    def _put(self, state: State) -> None:
        if (key := fold(self.standing.setdefault(state.identifier, {}), state)) is not None:
            self.changed[state.identifier, key] = len(self.events) + 1, state

    def _settle(self, act: Act, record: Prepared, who: Person) -> Prepared:
        """A time ahead of ours becomes ours; a renewal needs something to renew."""
        now = self.head.now
        if record.occurred_at is not None and record.occurred_at > now:
            record = replace(record, occurred_at=now)
        if record.status == "renewed" and act.policy.purposes[record.purpose].double_opt_in:
            ask = Ask(record.purpose, record.channel, record.contact or None, record.recipient or None)
            where = (record.purpose, record.channel, record.contact, record.recipient)
            confirmed = [
                state
                for state in who.states
                if (state.key[:4] == where and state.identifier == act.identifier) or state.slot in _NOES
            ]  # what another identifier confirmed would stay confirmed here when the two are linked no more
            if not decide(act.policy, confirmed, ask, now, who.ties).allow:
                record = replace(record, status="requested")
        return record

    def grown(self) -> Growth:
        """The tree with the entries of this batch."""
        return self.frontier.grown([leaf_hash(entry) for entry in self.entries])

    def rows(self, growth: Growth) -> Iterator[Any]:
        """The parameters of `write_batch`, from its sixth on."""
        yield from zip(*self.events, strict=True)
        made = [(i, subject, strand) for i, (subject, strand) in self.strands.items() if strand.new]
        again = [(i, strand) for i, (_, strand) in self.strands.items() if not strand.new]
        yield [identifier for identifier, _, _ in made]
        yield [strand.tenure for _, _, strand in made]
        yield [subject.type for _, subject, _ in made]
        yield [strand.key.wrapped for _, _, strand in made]
        yield [strand.key.seal(VALUE, subject.id.encode()) for _, subject, strand in made]
        yield [strand.events for _, _, strand in made]
        yield [identifier for identifier, _ in again]
        yield [strand.tenure for _, strand in again]
        yield [strand.events for _, strand in again]
        for part in range(3):
            yield [place[part] for place in self.contacts]
        yield list(self.contacts.values())
        yield from self._state_rows()
        for part in range(3):
            yield [conflict[part] for conflict in self.conflicts]
        yield growth.frontier.write()
        yield self.entries

    def _state_rows(self) -> Iterator[str]:
        """Rows that can stand nowhere yet, as what they have beyond their event; then the others, whole."""
        now = self.head.now
        fresh = {place for place, (_, state) in self.changed.items() if place not in self.stored and not state.via}
        yield _ROWS.encode([
            _NewState(
                n, state.purpose, state.slot, state.status, state.channel, state.contact, state.recipient,
                None if state.occurred_at is now else state.occurred_at, state.expires_at,
            )
            for place, (n, state) in self.changed.items() if place in fresh
        ]).decode()  # fmt: skip
        yield _ROWS.encode([state for place, (_, state) in self.changed.items() if place not in fresh]).decode()


class _NewState(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a new row has beyond its event; what is left out is empty, and the time that of recording."""

    n: int
    purpose: str
    slot: int
    status: str
    channel: str = ANY
    contact: bytes = b""
    recipient: str = ANY
    occurred_at: datetime | None = None
    expires_at: datetime | None = None


_ROWS = msgspec.json.Encoder()
_ANSWER = msgspec.json.Encoder()
_PAYLOAD = msgspec.json.Encoder(order="sorted")
_NO_NOTICE = Shown("", 0, "")


def _before(act: Act, known: BatchRow) -> Earlier | Exception:
    """What to answer to an act whose key is known."""
    if known.answer_key is None:
        return Erased()
    if known.body != act.body_hash:
        return KeyReused()
    return Repeated() if act.listed else Earlier(act.identifier, known)


def _stranger(act: Act) -> Member:
    """An identifier that nothing was recorded for and nothing is linked to."""
    return Member(act.identifier, act.identifier, "self", None, 0, 0, False, None, None)


def _linked(identifier: bytes, members: list[Member]) -> bool:
    return any(member.member == identifier and member.kind == "identity" for member in members)


def _unguarded(act: Act, members: list[Member]) -> FieldError | None:
    """A guardian's yes needs the link that makes him one; a no needs nothing."""
    if not act.guardian or not any(record.status in GRANTS for record in act.records):
        return None
    if any(member.kind == "guardian" and member.member == act.guardian for member in members):
        return None
    return FieldError("/guardian", "is not linked to this subject as its guardian; link it by POST /v1/links first")


def _state(
    act: Act, record: Prepared, tenure: int, event: UUID, who: Person, guardian: UUID | None, now: datetime
) -> State:
    slot, occurred_at = slot_of(record.status, act.method, guardian=bool(act.guardian)), record.occurred_at or now
    valid_for = act.policy.purposes[record.purpose].valid_for if record.status in GRANTS else None
    expires_at = None if valid_for is None else valid_for.after(occurred_at)
    # A guardian's yes holds until the child decides; the child's own never comes to hold by its growing up alone.
    ends = slot == Slot.GUARDIAN or (record.status in GRANTS and act.policy.purposes[record.purpose].age is not None)
    if ends and who.ties.minor_until is not None:
        expires_at = who.ties.minor_until if expires_at is None else min(expires_at, who.ties.minor_until)
    via = guardian.bytes if slot == Slot.GUARDIAN and guardian is not None else b""
    shown = act.notice or _NO_NOTICE
    return State(
        act.identifier, record.purpose, record.channel, record.contact, record.recipient, slot, act.grade, tenure, via,
        record.status, occurred_at, now, expires_at, shown.id, shown.version, shown.language, act.method or "", event,
    )  # fmt: skip


def _carried(act: Act, state: State, members: list[Member]) -> Iterator[State]:
    """A no goes to every identifier of the person, and stays there when the link ends."""
    if len(members) == 1 or state.status not in CARRIED:
        return
    mine = next((m for m in members if m.member == act.identifier and m.kind == "identity"), None)
    if mine is not None and not speaks_for(mine, state):
        return
    for other in members:
        if other.kind not in ("self", "identity") or other.member == act.identifier:
            continue
        links = [m for m in (mine, other) if m is not None and m.link is not None and m.began_at is not None]
        if not links:
            continue
        yield replace(
            state,
            identifier=other.member,
            tenure=other.member_tenure,
            via=b"".join(sorted(m.link.bytes for m in links if m.link is not None)),
            linked_at=max(m.began_at for m in links if m.began_at is not None),
            origin=act.identifier,
            account=other.account,
        )


def _event(act: Act, records: Sequence[Prepared], event: UUID, guardian: UUID | None, now: datetime) -> Event:
    """The whole act: what history shows and what a proof is about."""
    return Event(
        event=event,
        recorded_at=now,
        subject=act.subject,
        records=[
            EventRecord(
                r.purpose, r.status, r.channel or None, r.contact_value, r.recipient or None, r.occurred_at or now
            )
            for r in records
        ],
        notice=None
        if act.notice is None
        else EventNotice(act.notice.id, act.notice.version, act.notice.language, act.notice_hash),
        method=act.method,
        evidence=cast("dict[str, Any] | None", act.evidence),
        grade=GRADES[act.grade],
        guardian=guardian,
        credential=act.credential,
        policy=act.policy_version,
    )
