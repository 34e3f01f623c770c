"""Writing acts by group commit: one statement a batch, on the condition that the ledger is as it was read."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime
from typing import Any
from uuid import UUID

import msgspec
from msgspec.structs import replace

from consent_service import db, ids
from consent_service.auth import Credential
from consent_service.consents.answer import recorded
from consent_service.consents.model import Shown
from consent_service.consents.prepare import Act, Prepared, Sent, attests, earlier, prepare, read
from consent_service.decisions import Ask, decide
from consent_service.errors import ConsentError, FieldError, Forbidden, Frozen, Invalid, KeyReused, NotFound
from consent_service.ledger import Batcher, Head, Revision, group_commit, lock_head, read_head
from consent_service.policies import GRADES, Policy
from consent_service.policies.store import Policies
from consent_service.states import (
    ANY,
    GRANTS,
    RESTRICTIVE,
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
from consent_service.subjects import Hasher, Subject, normal_contact


class _PolicyMoved(ConsentError):
    """Another policy came into force while an act waited. It is checked again."""


class BatchRow(msgspec.Struct, frozen=True):
    """What is known about one act of a batch before it is written."""

    events: int
    body: bytes | None
    answer: bytes | None


class AnswerRow(msgspec.Struct, frozen=True):
    """An answer given before."""

    body: bytes
    answer: bytes


class Written(msgspec.Struct, frozen=True):
    """Whether a batch was written."""

    heads: int
    """1, or 0 where the ledger had changed."""


_READ_ANSWER = db.one("consents", "read_answer", AnswerRow)
_READ_BATCH = db.headed("consents", "read_batch", Head, BatchRow)
_READ_STATES = db.many("consents", "read_states", State)
_WRITE_BATCH = db.one("consents", "write_batch", Written)


class Writer:
    """Records consents: one batcher per ledger."""

    def __init__(self, pool: db.Pool, policies: Policies, secret: bytes) -> None:
        self._pool = pool
        self._policies = policies
        self._secret = secret
        self._ledgers: dict[int, _Ledger] = {}

    async def record(self, raw: bytes, credential: Credential, key: str | None) -> bytes:
        """Record one act; returns the answer (`Recorded` as JSON), the same for a retry with the same key.

        Raises:
            Malformed, Invalid, KeyMissing, KeyReused, Forbidden: see there. `Invalid.extra["recorded"]` holds the
                answer to the restrictive records of a call whose grants are refused.
            Unavailable, Frozen: nothing is known to be written; send the same again.
        """
        return await self._ledger(credential.log_id).record(read(raw), credential, key)

    async def close(self) -> None:
        """Finish what is queued."""
        for ledger in self._ledgers.values():
            await ledger.batcher.close()

    def _ledger(self, log_id: int) -> _Ledger:
        ledger = self._ledgers.get(log_id)
        if ledger is None:
            ledger = self._ledgers[log_id] = _Ledger(self._pool, self._policies, Hasher(self._secret, log_id), log_id)
        return ledger


class _Ledger:
    """The writes of one tenant."""

    def __init__(self, pool: db.Pool, policies: Policies, hasher: Hasher, log_id: int) -> None:
        self.pool = pool
        self.policies = policies
        self.hasher = hasher
        self.log_id = log_id
        self.version: int | None = None
        self.batcher: Batcher[Act, bytes] = Batcher(group_commit(self.commit))

    async def record(self, sent: Sent, credential: Credential, key: str | None) -> bytes:
        if not attests(credential) and sent.body.subject.type != "device":
            raise Forbidden("This key writes for devices only. Other identifiers need the scope `write:attested`.")
        while True:
            version, policy = await self._policy()
            act, errors = prepare(policy, version, sent, credential, key, self.hasher)
            try:
                if act is not None and not errors:
                    return await self._whole(act)
                if (before := await self._answered(sent, credential, key)) is not None:
                    return before
                if not await self._moved(version):
                    raise Invalid(
                        "Some fields cannot be accepted; no grant was recorded.", tuple(errors), await self._noes(act)
                    )
            except _PolicyMoved:
                self.version = None

    async def _whole(self, act: Act) -> bytes:
        try:
            return await self.batcher.submit(act)
        except (KeyReused, Invalid) as error:
            error.extra = await self._noes(act)
            raise

    async def _answered(self, sent: Sent, credential: Credential, key: str | None) -> bytes | None:
        """The answer that this call got before: what was in order then stays answered, whatever the policy says now."""
        call = earlier(sent, credential, key, self.hasher)
        if call is None:
            return None
        async with db.connection(self.pool) as connection:
            row = await _READ_ANSWER(connection, self.log_id, call.credential, call.device, call.key)
        return row.answer if row is not None and row.body == call.body_hash else None

    async def _noes(self, act: Act | None) -> dict[str, Any] | None:
        """Write the noes of an act, whatever became of the rest; what to tell of them beside the refusal."""
        noes = () if act is None else tuple(record for record in act.records if record.status in RESTRICTIVE)
        if act is None or not noes:
            return None
        # A key of their own, the same for the same body: the caller's may be taken, or be needed for a corrected call.
        key = hashlib.sha256(act.key + act.body_hash).digest()[:16]
        return {"recorded": msgspec.Raw(await self.batcher.submit(replace(act, records=noes, key=key)))}

    async def _moved(self, version: int) -> bool:
        """Whether another policy came into force: a refusal must not rest on an old one."""
        async with db.connection(self.pool) as connection:
            head = await read_head(connection, self.log_id)
        if head.policy == version:
            return False
        self.version = None
        return True

    async def _policy(self) -> tuple[int, Policy]:
        """The policy in force as far as this process knows; the commit looks again."""
        if self.version is not None and (known := self.policies.known(self.log_id, self.version)) is not None:
            return self.version, known
        async with db.connection(self.pool) as connection:
            head = await read_head(connection, self.log_id)
            policy = await self.policies.get(connection, self.log_id, head.policy)
        self.version = head.policy
        return head.policy, policy

    async def commit(self, acts: Sequence[Act]) -> Sequence[bytes | Exception]:
        """Write a batch, all of it or nothing.

        The first try reads without a lock and writes on the condition that the ledger is as it was read: two round
        trips. Only when another process was quicker does the second wait for its turn and hold the head meanwhile.
        """
        async with db.connection(self.pool) as connection:
            answers = await self._try(connection, acts)
            if answers is None:
                async with connection.transaction():
                    await lock_head(connection, self.log_id)
                    answers = await self._try(connection, acts)
        if answers is None:
            raise AssertionError("whoever holds the head is not overtaken")
        return answers

    async def _try(self, connection: db.Connection, acts: Sequence[Act]) -> Sequence[bytes | Exception] | None:
        """The answers; None if the ledger changed between reading and writing, so that nothing was written."""
        found = await _READ_BATCH(
            connection, self.log_id, [a.credential for a in acts], [a.device for a in acts], [a.key for a in acts],
            [a.identifier for a in acts],
        )  # fmt: skip
        if found is None:
            raise NotFound("There is no such tenant.")
        head, known = found
        if head.frozen:
            raise Frozen
        batch = _Batch(head)
        returning = {act.identifier for act, row in zip(acts, known, strict=True) if row.events}
        if returning:
            batch.load(await _READ_STATES(connection, self.log_id, list(returning)))
        answers = [batch.add(act, row) for act, row in zip(acts, known, strict=True)]
        if batch.events:
            written = await _WRITE_BATCH(
                connection, self.log_id, head.now, head.size, head.epoch, head.policy, *batch.rows()
            )
            if written is None or not written.heads:
                return None
        return answers


class _Batch:
    """What one statement writes, gathered act by act."""

    def __init__(self, head: Head) -> None:
        self.head = head
        self.standing: dict[bytes, Standing] = {}
        self.identifiers: dict[bytes, tuple[Subject, int]] = {}
        """By identifier: the subject and how many events it has now."""
        self.again: set[bytes] = set()
        """Those of them that had events before."""
        self.stored: set[tuple[bytes, StateKey]] = set()
        """The keys of the rows that stood before: an insert need not look for the others."""
        self.contacts: dict[bytes, str] = {}
        self.changed: dict[tuple[bytes, StateKey], tuple[int, State]] = {}
        """The rows to write, each with its event's place in `events`."""
        self.answered: dict[tuple[str, bytes, bytes], tuple[bytes, bytes]] = {}
        self.events: list[tuple[Any, ...]] = []

    def load(self, states: Iterable[State]) -> None:
        """The rows that stand before the batch."""
        for state in states:
            key = state.key
            self.standing.setdefault(state.identifier, {})[key] = state
            self.stored.add((state.identifier, key))

    def add(self, act: Act, known: BatchRow) -> bytes | Exception:
        """Write an act, or find that it was written before."""
        key = (act.credential, act.device, act.key)
        before = self.answered.get(key)
        if before is None and known.body is not None and known.answer is not None:
            before = known.body, known.answer
        if before is not None:
            return before[1] if before[0] == act.body_hash else KeyReused()
        if act.policy_version != self.head.policy:
            return _PolicyMoved()
        if (crowded := self._crowded(act)) is not None:
            return crowded
        answer = self._write(act, known.events)
        self.answered[key] = act.body_hash, answer
        return answer

    def _crowded(self, act: Act) -> Invalid | None:
        """Rows of one identifier are read and weighed together, so their number has an end."""
        named = {(record.purpose, record.contact) for record in act.records if record.contact}
        if not named:
            return None
        named |= {(key[0], key[2]) for key in self.standing.get(act.identifier, ()) if key[2]}
        for purpose, count in Counter(purpose for purpose, _ in named).items():
            if count > MAX_CONTACTS:
                wrong = FieldError(
                    "/records", f"`{purpose}` would hold for more than {MAX_CONTACTS} contacts of one subject"
                )
                return Invalid("Some fields cannot be accepted.", (wrong,))
        return None

    def _write(self, act: Act, events_before: int) -> bytes:
        event, now = ids.event_id(), self.head.now
        if events_before:
            self.again.add(act.identifier)
        sequence = self.identifiers.get(act.identifier, (act.subject, events_before))[1] + 1
        self.identifiers[act.identifier] = act.subject, sequence
        standing = self.standing.setdefault(act.identifier, {})
        records = [self._settle(act, record, standing) for record in act.records]
        for record in records:
            state = _state(act, record, event, now)
            if (key := fold(standing, state)) is not None:
                self.changed[act.identifier, key] = len(self.events) + 1, state
            if record.contact_value is not None:
                self.contacts[record.contact] = normal_contact(record.contact_value)
        revision = Revision(self.head.epoch, self.head.size + len(self.events) + 1)
        answer = _ANSWER.encode(recorded(act, records, list(standing.values()), event, revision, now))
        shown = act.notice or _NO_NOTICE
        self.events.append((
            event, act.identifier, sequence, ",".join([r.purpose for r in records]),
            ",".join([r.status for r in records]), act.credential, act.grade, _payload(act, records, event, now),
            act.device, act.key, act.body_hash, answer, shown.id, shown.version, shown.language, act.method or "",
        ))  # fmt: skip
        return answer

    def _settle(self, act: Act, record: Prepared, standing: Standing) -> Prepared:
        """A time ahead of ours becomes ours; a renewal needs something to renew."""
        now = self.head.now
        if record.occurred_at is not None and record.occurred_at > now:
            record = replace(record, occurred_at=now)
        if record.status == "renewed" and act.policy.purposes[record.purpose].double_opt_in:
            ask = Ask(record.purpose, record.channel, record.contact or None, record.recipient or None)
            where = (record.purpose, record.channel, record.contact, record.recipient)
            confirmed = [state for key, state in standing.items() if key[:4] == where or state.slot in _NOES]
            if not decide(act.policy, confirmed, ask, now).allow:
                record = replace(record, status="requested")
        return record

    def rows(self) -> Iterator[Any]:
        """The parameters of `write_batch`, from its sixth on."""
        yield from zip(*self.events, strict=True)
        yield from self._identifier_columns(self.identifiers.keys() - self.again)
        yield from self._identifier_columns(self.again)
        yield list(self.contacts)
        yield list(self.contacts.values())
        now = self.head.now
        yield _ROWS.encode([
            _NewState(
                n, state.purpose, state.slot, state.status, state.channel, state.contact, state.recipient,
                None if state.occurred_at is now else state.occurred_at, state.expires_at,
            )
            for key, (n, state) in self.changed.items() if key not in self.stored
        ]).decode()  # fmt: skip
        yield _ROWS.encode([state for key, (_, state) in self.changed.items() if key in self.stored]).decode()

    def _identifier_columns(self, wanted: AbstractSet[bytes]) -> Iterator[list[Any]]:
        found = [(identifier, *self.identifiers[identifier]) for identifier in wanted]
        yield [identifier for identifier, _, _ in found]
        yield [subject.type for _, subject, _ in found]
        yield [subject.id for _, subject, _ in found]
        yield [events for _, _, events in found]


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


MAX_CONTACTS = 32
"""How many contacts one purpose may hold for, of one identifier."""
_NOES = (Slot.BLOCK, Slot.OBJECTION, Slot.RESTRICTION)
_ROWS = msgspec.json.Encoder()
_ANSWER = msgspec.json.Encoder()
_PAYLOAD = msgspec.json.Encoder(order="sorted")
_NO_NOTICE = Shown("", 0, "")


def _state(act: Act, record: Prepared, event: UUID, now: datetime) -> State:
    slot, occurred_at = slot_of(record.status, act.method), record.occurred_at or now
    valid_for = act.policy.purposes[record.purpose].valid_for if record.status in GRANTS else None
    shown = act.notice or _NO_NOTICE
    return State(
        act.identifier, record.purpose, record.channel, record.contact, record.recipient, slot, act.grade,
        record.status, occurred_at, now, None if valid_for is None else valid_for.after(occurred_at),
        shown.id, shown.version, shown.language, act.method or "", event,
    )  # fmt: skip


def _payload(act: Act, records: list[Prepared], event: UUID, now: datetime) -> bytes:
    """The whole act as canonical JSON: what history shows and what a proof will be about."""
    return _PAYLOAD.encode(
        Event(
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
            evidence=act.evidence,
            grade=GRADES[act.grade],
            credential=act.credential,
            policy=act.policy_version,
        )
    )
