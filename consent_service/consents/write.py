"""Writing acts by group commit: one statement a batch, on the condition that the ledger is as it was read."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple
from uuid import UUID

import msgspec
from msgspec.structs import replace

from consent_service import db, decode
from consent_service.auth import Credential
from consent_service.consents.batch import Batch, BatchRow, PolicyMoved, Repeated, Suppressed
from consent_service.consents.model import ConsentBody, DeviceBody
from consent_service.consents.prepare import Act, Sent, earlier, prepare, read
from consent_service.consents.receipts import Earlier, Told, again
from consent_service.devices import Devices, cookie
from consent_service.errors import ConsentError, Erased, Frozen, Invalid, KeyMissing, KeyReused, NotFound
from consent_service.ledger import (
    Batcher,
    Growth,
    Head,
    Ledger,
    Ledgers,
    Log,
    PerLedger,
    group_commit,
    read_head,
)  # fmt: skip
from consent_service.policies import Policy
from consent_service.states import RESTRICTIVE, Standing
from consent_service.tenures import Member, find


class AnswerRow(msgspec.Struct, frozen=True):
    """An answer given before."""

    body: bytes
    identifier: bytes
    answer: bytes
    answer_event: UUID
    answer_tenure: int
    answer_idx: int
    answer_size: int
    answer_key: bytes | None
    """None: it was erased."""


class Written(msgspec.Struct, frozen=True):
    """Whether a batch was written."""

    heads: int
    """1, or 0 where the ledger had changed."""


_OF_A_ROW = (Invalid, Suppressed, Repeated, Erased)
"""What concerns one row of a list, and no other."""
_MINTED = msgspec.json.Encoder()
_READ_ANSWER = db.one("consents", "read_answer", AnswerRow)
_READ_BATCH = db.headed("consents", "read_batch", Head, BatchRow)
_WRITE_BATCH = db.one("consents", "write_batch", Written)


class Writer:
    """Records consents: one batcher per ledger."""

    def __init__(self, ledgers: Ledgers, devices: Devices) -> None:
        self._devices = devices
        self._books = PerLedger(ledgers, _Book)

    async def record(self, raw: bytes, credential: Credential, key: str | None, *, minimal: bool = False) -> bytes:
        """Record one act; returns the answer (`Recorded` as JSON), the same for a retry with the same key.

        `minimal`: without the record, which whoever has the receipt and the policy can make.

        Raises:
            Malformed, Invalid, KeyMissing, KeyReused, Forbidden: see there. `Invalid.extra["recorded"]` holds the
                answer to the restrictive records of a call whose grants are refused.
            Unavailable, Frozen: nothing is known to be written; send the same again.
        """
        sent = read(raw)
        self._devices.demand_own(credential, sent.body.subject, sent.body.proof, "write:attested")
        return await self._books.of(credential.log_id).record(sent, credential, key, minimal=minimal)

    async def begin(self, raw: bytes, credential: Credential, *, minimal: bool = False) -> bytes:
        """Mint a device (`DeviceBody` to `Minted`), and record its first act where it comes with one.

        Raises:
            As `record`.
        """
        body = decode.body(raw, DeviceBody, unique=True)
        book = self._books.of(credential.log_id)
        seed = None
        if body.records:
            if body.id is None:
                raise KeyMissing("Send a random UUID as `id`: whoever sends the same one gets the same device.")
            seed = book.ledger.hasher.call(credential.id, b"", body.id, b"device")
        device = self._devices.mint(credential.log_id, seed)
        answer = None
        if body.records:
            act = ConsentBody(
                subject=device.subject, records=body.records, id=body.id, notice=body.notice, method=body.method,
                evidence=body.evidence,
            )  # fmt: skip
            sent = Sent(act, range(len(act.records)), ())
            answer = msgspec.Raw(await book.record(sent, credential, None, minimal=minimal))
        if body.records and all(record.status in RESTRICTIVE for record in body.records):
            return _MINTED.encode({"identifier": None, "token": None, "cookie": None, "recorded": answer})
        domain = (await book.policy())[1].tenant.cookie_domain
        kept = None if domain is None else cookie(device.token, domain)
        return _MINTED.encode({"identifier": device.subject, "token": device.token, "cookie": kept, "recorded": answer})

    async def listed(
        self, rows: Sequence[ConsentBody], credential: Credential, *, rehearse: bool = False
    ) -> list[bytes | ConsentError]:
        """Record rows of a list, each an act with its key as `id`; in their order.

        Gives for each the answer without a receipt (`Recorded`), or why it was not written: Invalid, Suppressed,
        Repeated, Erased. `rehearse`: write nothing, and tell what would be answered as things are.

        Raises:
            Unavailable, Frozen: it is not known which rows are written; send the same again.
        """
        return await self._books.of(credential.log_id).listed(rows, credential, rehearse=rehearse)

    async def close(self) -> None:
        """Finish what is queued."""
        for book in self._books.all():
            await book.batcher.close()


class _Book:
    """The writes of one tenant."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger
        self.version: int | None = None
        self.batcher: Batcher[Act, Told] = Batcher(group_commit(self.commit))
        self.rehearsals: Batcher[Act, Told] = Batcher(group_commit(self.rehearse))

    async def record(self, sent: Sent, credential: Credential, key: str | None, *, minimal: bool) -> bytes:
        while True:
            version, policy = await self.policy()
            act, errors = prepare(policy, version, sent, credential, key, self.ledger.hasher)
            try:
                if act is not None and not errors:
                    return await self._whole(act, minimal=minimal)
                if (before := await self._answered(sent, credential, key)) is not None:
                    return before.encode(minimal=minimal)
                if not await self._moved(version):
                    noes = await self._noes(act, minimal=minimal)
                    raise Invalid("Some fields cannot be accepted; no grant was recorded.", tuple(errors), noes)
            except PolicyMoved:
                self.version = None

    async def listed(
        self, rows: Sequence[ConsentBody], credential: Credential, *, rehearse: bool
    ) -> list[bytes | ConsentError]:
        await self.policy()  # known from here on, so that rows are queued in their order
        batcher = self.rehearsals if rehearse else self.batcher
        answers = await asyncio.gather(*(self._row(row, credential, batcher) for row in rows), return_exceptions=True)
        told: list[bytes | ConsentError] = []
        for answer in answers:
            if not isinstance(answer, (bytes, *_OF_A_ROW)):
                raise answer
            told.append(answer)
        return told

    async def _row(self, row: ConsentBody, credential: Credential, batcher: Batcher[Act, Told]) -> bytes:
        while True:
            version, policy = await self.policy()
            sent = Sent(row, range(len(row.records)), (), listed=True)
            act, errors = prepare(policy, version, sent, credential, None, self.ledger.hasher)
            try:
                if act is not None and not errors:
                    return (await batcher.submit(act)).answer
                if not await self._moved(version):
                    raise Invalid("Some fields cannot be accepted.", tuple(errors))
            except PolicyMoved:
                self.version = None

    async def _whole(self, act: Act, *, minimal: bool) -> bytes:
        try:
            told = await self.batcher.submit(act)
        except (KeyReused, Invalid) as error:
            error.extra = await self._noes(act, minimal=minimal)
            raise
        return told.encode(minimal=minimal)

    async def _answered(self, sent: Sent, credential: Credential, key: str | None) -> Told | None:
        """The answer that this call got before: what was in order then stays answered, whatever the policy says now."""
        call = earlier(sent, credential, key, self.ledger.hasher)
        if call is None:
            return None
        async with self.ledger.connection() as connection:
            row = await _READ_ANSWER(connection, self.ledger.log_id, call.key)
            if row is not None and row.answer_key is None:
                raise Erased
            if row is None or row.body != call.body_hash:
                return None
            head = await read_head(connection, self.ledger.log_id)
            if head.frozen is not None:
                raise Frozen(head.frozen)
            told = await again(connection, self.ledger, head, Earlier(row.identifier, row))
        if isinstance(told, Erased):
            raise told
        return told

    async def _noes(self, act: Act | None, *, minimal: bool) -> dict[str, Any] | None:
        """Write the noes of an act, whatever became of the rest; what to tell of them beside the refusal."""
        noes = () if act is None else tuple(record for record in act.records if record.status in RESTRICTIVE)
        if act is None or not noes:
            return None
        # A key of their own, the same for the same body: the caller's may be taken, or be needed for a corrected call.
        key = hashlib.sha256(act.key + act.body_hash).digest()[:16]
        told = await self.batcher.submit(replace(act, records=noes, key=key))
        return {"recorded": msgspec.Raw(told.encode(minimal=minimal))}

    async def _moved(self, version: int) -> bool:
        """Whether another policy came into force: a refusal must not rest on an old one."""
        async with self.ledger.connection() as connection:
            head = await read_head(connection, self.ledger.log_id)
        if head.policy == version:
            return False
        self.version = None
        return True

    async def policy(self) -> tuple[int, Policy]:
        """The policy in force as far as this process knows; the commit looks again."""
        log_id, policies = self.ledger.log_id, self.ledger.policies
        if self.version is not None and (known := policies.known(log_id, self.version)) is not None:
            return self.version, known
        async with self.ledger.connection() as connection:
            head = await read_head(connection, log_id)
            policy = await policies.get(connection, log_id, head.policy)
        self.version = head.policy
        return head.policy, policy

    async def commit(self, acts: Sequence[Act]) -> Sequence[Told | Exception]:
        """Write a batch, all of it or nothing.

        The first try reads without a lock and writes on the condition that the ledger is as it was read: two round
        trips. Only when another process was quicker does the second wait for its turn and hold the head meanwhile.
        """
        async with self.ledger.connection() as connection:
            return await self._answer(connection, await self._settled(connection, acts, self._try))

    async def rehearse(self, acts: Sequence[Act]) -> Sequence[Told | Exception]:
        """What a batch would be answered, without receipts; nothing is written."""
        async with self.ledger.connection() as connection:
            _, _, batch, _, done = await self._settled(connection, acts, self._gather)
        return [self._rehearsed(batch, one) for one in done]

    def _rehearsed(self, batch: Batch, one: int | Earlier | Exception) -> Told | Exception:
        if isinstance(one, Exception):
            return one
        assert isinstance(one, int), "rows of a list are told as `Repeated`"  # noqa: S101 -- they alone are rehearsed
        event, act = batch.said[one]
        return Told(batch.answers[one], "", event, act.policy)

    async def _settled(self, connection: db.Connection, acts: Sequence[Act], attempt: _Attempt) -> _Tried:
        """What comes of an attempt at a batch, made again while the head is held where the first came to nothing."""
        tried = await attempt(connection, acts)
        if tried is None:
            async with connection.transaction():
                await self.ledger.hold(connection)
                tried = await attempt(connection, acts)
        if tried is None:
            raise AssertionError("whoever holds the head is not overtaken")
        return tried

    async def _try(self, connection: db.Connection, acts: Sequence[Act]) -> _Tried | None:
        """Write a batch; None if the ledger changed between reading and writing, so that nothing was written."""
        tried = await self._gather(connection, acts)
        if tried is None or not tried.batch.events:
            return tried
        head, batch, growth = tried.head, tried.batch, tried.batch.grown()
        written = await _WRITE_BATCH(
            connection, self.ledger.log_id, head.now, head.size, head.epoch, head.policy, *batch.rows(growth)
        )
        return tried._replace(growth=growth) if written is not None and written.heads else None

    async def _gather(self, connection: db.Connection, acts: Sequence[Act]) -> _Tried | None:
        """A batch that is not written yet; None if the ledger changed while it was read."""
        log_id = self.ledger.log_id
        found = await _READ_BATCH(connection, log_id, [a.key for a in acts], [a.identifier for a in acts])
        if found is None:
            raise NotFound("There is no such tenant.")
        head, known = found[0], [row for (row,) in found[1]]
        if head.frozen is not None:
            raise Frozen(head.frozen)
        # Whoever is new here has nothing that stands, unless it is the tombstone of somebody who was erased.
        returning = {a.identifier: a for a, row in zip(acts, known, strict=True) if row.tenure or a.minds_tombstones}
        members: dict[bytes, list[Member]] = {}
        standing: dict[bytes, Standing] = {}
        if returning:
            asked = {identifier: act.subject.type in act.policy.tenant.shared for identifier, act in returning.items()}
            for one in (address for act in returning.values() for address in act.addresses):
                asked.setdefault(one, False)
            now, members, standing = await find(connection, log_id, list(asked), list(asked.values()), head.now)
            if now.revision != head.revision or now.policy != head.policy:
                return None
        log = await self.ledger.log(connection, head)
        if not self.ledger.is_kept(head, known[0].frontier):
            return None  # overtaken by another writer of this process; or the database is an older one, as `hold` finds
        batch = Batch(self.ledger, head, known[0].frontier, members, standing)
        done = [batch.add(act, row) for act, row in zip(acts, known, strict=True)]
        return _Tried(head, log, batch, None, done)

    async def _answer(self, connection: db.Connection, tried: _Tried) -> Sequence[Told | Exception]:
        """What each act is answered, now that all of it is committed: nothing is signed before."""
        head, log, batch, growth, done = tried
        receipts: list[Told] = []
        if growth is not None:
            receipts = list(batch.receipts(log, growth))
        return [
            receipts[one] if isinstance(one, int)
            else await again(connection, self.ledger, head, one) if isinstance(one, Earlier) else one
            for one in done
        ]  # fmt: skip


class _Tried(NamedTuple):
    """A batch that was written, or is to be."""

    head: Head
    """As it was before."""
    log: Log
    batch: Batch
    growth: Growth | None
    """None: nothing of it is written, or all of it had been before."""
    done: list[int | Earlier | Exception]


_Attempt = Callable[[db.Connection, Sequence[Act]], Awaitable[_Tried | None]]
