"""Ordering an export: it fixes the filter and the tree, and is itself an entry of the ledger."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Iterator
from datetime import UTC, datetime
from uuid import UUID

import msgspec
from msgspec.structs import replace

from consent_service import db, decode, ids
from consent_service.auth import Credential
from consent_service.errors import FieldError, Invalid, NotFound
from consent_service.exports.delivery import deliver, demand_signing
from consent_service.exports.model import Asked, Export, ExportBody, ExportRow
from consent_service.ledger import Ledger, Ledgers, Tip, append, parquet, read_head
from consent_service.ledger.entry import ExportMade, system
from consent_service.ledger.export import ENCODER, Filter
from consent_service.ledger.tree import Frontier
from consent_service.links.write import READ_LINKS
from consent_service.subjects import Subject, id_errors
from consent_service.tenures import READ_STRANDS, StrandRow

_SALT = 32
OPERATOR = "command line"
"""Who orders by command; no credential has such an id."""


class EventPlace(msgspec.Struct, frozen=True):
    """Where an event stands, and when it was recorded."""

    idx: int
    recorded_at: datetime


class CheckpointRow(msgspec.Struct, frozen=True):
    """A checkpoint that was published."""

    note: str
    timestamp: bytes | None


_ADD = db.execute("exports", "add_export")
_READ = db.one("exports", "read_export", ExportRow)
_NEXT_EVENT = db.one("exports", "next_event", EventPlace)
_READ_CHECKPOINT = db.one("exports", "read_checkpoint", CheckpointRow)
_ENCODER = msgspec.json.Encoder()


class Exporter:
    """Exports, of all tenants."""

    def __init__(self, ledgers: Ledgers) -> None:
        self._ledgers = ledgers

    async def order(self, raw: bytes, credential: Credential) -> bytes:
        """Order an export (`ExportBody` to `Export`).

        Raises:
            Invalid: a purpose is unknown, or the times are the wrong way round; names every field.
            Frozen, Malformed, Unavailable: see there.
        """
        ledger = self._ledgers.of(credential.log_id)
        row = await order(ledger, decode.body(raw, ExportBody, unique=True), credential.id)
        return await self._told(ledger, row)

    async def show(self, credential: Credential, export: str) -> bytes:
        """An export and how far it is (`Export`); raises NotFound."""
        ledger = self._ledgers.of(credential.log_id)
        return await self._told(ledger, await find(ledger, export))

    async def file(self, credential: Credential, export: str) -> tuple[AsyncGenerator[bytes, None], str]:
        """The pieces of the file, and a name for it; raises NotFound at once, before the first; so Frozen."""
        ledger = self._ledgers.of(credential.log_id)
        row = await find(ledger, export)
        return await fetch(ledger, row), f"export-{row.export}.zip"

    async def _told(self, ledger: Ledger, row: ExportRow) -> bytes:
        async with ledger.connection() as connection:
            head = await read_head(connection, ledger.log_id)
            log = await ledger.log(connection, replace(head, epoch=row.epoch))
        told = Export(
            id=row.export, status=row.status, format=row.format, filter=Asked(**msgspec.structs.asdict(row.wanted)),
            origin=log.origin, epoch=row.epoch, size=row.size, first=row.first, end=row.end,
            entries=row.end - row.first, entries_done=row.entries_done, events_done=row.events_done,
            created_at=row.created_at, salt=row.salt.hex(), file=f"/v1/exports/{row.export}/file",
        )  # fmt: skip
        return _ENCODER.encode(told)


async def find(ledger: Ledger, export: str) -> ExportRow:
    """An export of the tenant by its id; raises NotFound."""
    try:
        wanted = UUID(export)
    except ValueError:
        raise NotFound("There is no such export.") from None
    async with ledger.connection() as connection:
        row = await _READ(connection, ledger.log_id, wanted)
    if row is None:
        raise NotFound("There is no such export.")
    return row


def _nobody(_count: int) -> None:
    """Wants to know nothing."""


async def fetch(ledger: Ledger, row: ExportRow, tell: Callable[[int], None] = _nobody) -> AsyncGenerator[bytes, None]:
    """The pieces of the file of an export, if it may be given out; see `deliver`.

    Raises:
        Frozen: the ledger signs nothing.
        NotFound: what was ordered is not there any more; says why.
    """
    await demand_signing(ledger, row)
    await _demand_true(ledger, row)
    return deliver(ledger, row, tell)


async def _demand_true(ledger: Ledger, row: ExportRow) -> None:
    """Refuse to give out, as one person's, what has turned out to be somebody else's."""
    if not row.identifiers:
        return
    async with ledger.connection() as connection:
        links = await READ_LINKS(connection, ledger.log_id, row.identifiers)
    accounts = {one for one, is_account in zip(row.identifiers, row.accounts, strict=True) if is_account}
    for link in links:
        if link.anchor in accounts and link.annulled_at is not None and link.annulled_at > row.created_at:
            raise NotFound("A link of this person was annulled as false since the export was ordered. Order it anew.")


async def order(ledger: Ledger, body: ExportBody, by: str) -> ExportRow:
    """Order an export for a credential."""
    identifier = None if body.subject is None else ledger.hasher.identifier(body.subject)
    salt = os.urandom(_SALT)
    async with ledger.connection() as connection:
        await _demand_sound(connection, ledger, body)
        wanted = _filter(body, identifier)
        async with connection.transaction():
            tip = await ledger.hold(connection)
            first, end = await _range(connection, ledger, tip, wanted)
            of = await _strands(connection, ledger, body.subject, tip)
            note, stamped = await _checkpoint(connection, ledger, tip)
            made = ExportMade(
                at=tip.now, export=ids.event_id(), by=ledger.hasher.once("credential", by).hex(),
                filter=hashlib.sha256(salt + ENCODER.encode(wanted)).hexdigest(), size=tip.size,
            )  # fmt: skip
            await append(connection, ledger.log_id, tip, [system(made)], tip.now)
            await _ADD(
                connection, ledger.log_id, made.export, body.format, ENCODER.encode(wanted), salt, tip.epoch, tip.size,
                first, end, note, stamped, [one.identifier for one in of], [one.tenure for one in of],
                [one.events for one in of], [one.is_account for one in of], tip.now,
            )  # fmt: skip
            row = await _READ(connection, ledger.log_id, made.export)
    assert row is not None, "it was written a moment ago"  # noqa: S101 -- in the same transaction
    return row


def _filter(body: ExportBody, identifier: bytes | None) -> Filter:
    """What is asked for, the same for the same wish."""
    return Filter(
        from_=_utc(body.from_), until=_utc(body.until), purposes=tuple(sorted(set(body.purposes))),
        channels=tuple(sorted(set(body.channels))), statuses=tuple(sorted(set(body.statuses))),
        subject=None if identifier is None else identifier.hex(), actors=tuple(sorted(set(body.actors))),
        kinds=tuple(sorted(set(body.kinds))),
    )  # fmt: skip


async def _demand_sound(connection: db.Connection, ledger: Ledger, body: ExportBody) -> None:
    errors = list(_faults(body))
    head = (await read_head(connection, ledger.log_id)).policy
    unknown = [(place, purpose) for place, purpose in enumerate(body.purposes) if purpose != "*"]
    for version in range(head, 0, -1):  # purposes of the past have records too
        if not unknown:
            break
        known = (await ledger.policies.get(connection, ledger.log_id, version)).purposes
        unknown = [(place, purpose) for place, purpose in unknown if purpose not in known]
    errors += [FieldError(f"/purposes/{place}", "is no purpose of this tenant's policy") for place, _ in unknown]
    if errors:
        raise Invalid("Some fields cannot be accepted.", tuple(errors))


def _utc(moment: datetime | None) -> datetime | None:
    return None if moment is None else moment.astimezone(UTC)


def _faults(body: ExportBody) -> Iterator[FieldError]:
    for name, moment in (("from", body.from_), ("until", body.until)):
        try:
            _utc(moment)
        except OverflowError:
            yield FieldError(f"/{name}", "lies before or beyond all years that there are")
    if body.from_ is not None and body.until is not None and body.from_ >= body.until:
        yield FieldError("/until", "must be later than `from`")
    if body.format == "parquet" and not parquet.is_installed():
        yield FieldError("/format", "is not installed here: pip install 'consent-service[parquet]'; or take `csv`")
    if body.subject is not None:
        yield from id_errors(body.subject.id, "/subject/id")


async def _range(connection: db.Connection, ledger: Ledger, tip: Tip, wanted: Filter) -> tuple[int, int]:
    """The entries that may have been recorded in the time that is asked for.

    Times never decrease along the ledger. The history of a subject is shown to be complete by all entries that there
    are, so there the time limits the events only.
    """
    first, end = 0, tip.size
    if wanted.subject is None and wanted.from_ is not None:
        first = await _bound(connection, ledger.log_id, wanted.from_, tip.size)
    if wanted.subject is None and wanted.until is not None:
        place = await _bound(connection, ledger.log_id, wanted.until, tip.size)
        found = await _NEXT_EVENT(connection, ledger.log_id, place)
        end = tip.size if found is None else found.idx
    return first, end


async def _bound(connection: db.Connection, log_id: int, at: datetime, size: int) -> int:
    """The place behind the last event that was recorded before a moment."""
    low, high = 0, size
    while low < high:
        middle = (low + high) // 2
        found = await _NEXT_EVENT(connection, log_id, middle)
        if found is None or found.recorded_at >= at:
            high = middle
        else:
            low = found.idx + 1
    return low


async def _checkpoint(connection: db.Connection, ledger: Ledger, tip: Tip) -> tuple[str, bytes | None]:
    """The checkpoint of the tree as it is: that which was published, with whoever else signed it, or one of ours."""
    published = await _READ_CHECKPOINT(connection, ledger.log_id, tip.epoch, tip.size)
    if published is not None:
        return published.note, published.timestamp
    log = await ledger.log(connection, tip)
    root = Frontier.read(tip.size, tip.frontier).root
    return ledger.sign(log, tip.size, root), None


async def _strands(connection: db.Connection, ledger: Ledger, subject: Subject | None, tip: Tip) -> list[StrandRow]:
    """The strands of the person that an export is about."""
    if subject is None:
        return []
    policy = await ledger.policies.get(connection, ledger.log_id, tip.policy)
    shared = subject.type in policy.tenant.shared
    return await READ_STRANDS(connection, ledger.log_id, ledger.hasher.identifier(subject), shared, tip.now)
