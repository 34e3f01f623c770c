"""What callers of the exports send and get, and the row of one."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal
from uuid import UUID

import msgspec
from msgspec import Meta

from consent_service.ledger.export import Filter, Format
from consent_service.policies import Channel
from consent_service.states import Moment, Status
from consent_service.subjects import Subject

MAX_CHOICES = 100
Progress = Literal["ready", "running", "done"]
Actor = Annotated[str, Meta(pattern=r"^[ -~]{1,256}$(?!\n)")]


class ExportBody(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True, rename={"from_": "from"}
):
    """Which events, in which form. What is left out limits nothing.

    Of purposes, channels and statuses a single record of a consent must fulfil all; one that names no channel, or all
    purposes, is about each.
    """

    format: Format = "ndjson"
    from_: Moment | None = None
    """Recorded then or later."""
    until: Moment | None = None
    """Recorded before."""
    purposes: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=64)], ...], Meta(max_length=MAX_CHOICES)
    ] = ()
    channels: Annotated[tuple[Channel, ...], Meta(max_length=MAX_CHOICES)] = ()
    statuses: Annotated[tuple[Status, ...], Meta(max_length=MAX_CHOICES)] = ()
    subject: Subject | None = None
    """An identifier, and whatever is or was linked to the account that it belongs to: the file shows that nothing of
    it is missing."""
    actors: Annotated[tuple[Actor, ...], Meta(max_length=MAX_CHOICES)] = ()
    """Ids of credentials: who recorded it."""
    kinds: Annotated[tuple[Literal["consent", "link", "read"], ...], Meta(max_length=MAX_CHOICES)] = ()


class Asked(msgspec.Struct, frozen=True, kw_only=True, rename={"from_": "from"}):
    """What an export was ordered with."""

    from_: Moment | None
    until: Moment | None
    purposes: tuple[str, ...]
    channels: tuple[str, ...]
    statuses: tuple[str, ...]
    subject: str | None
    """Keyed hash (hex): who it was is not kept."""
    actors: tuple[str, ...]
    kinds: tuple[str, ...]


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """An export. It covers the ledger as it was when it was ordered, however often and whenever it is fetched."""

    id: UUID
    status: Progress
    """`running` and `done` tell of the last delivery."""
    format: Format
    filter: Asked
    origin: str
    """The ledger's name."""
    epoch: int
    size: int
    """Entries that the ledger had."""
    first: int
    end: int
    """The entries that are in it: from `first` up to but without `end`."""
    entries: int
    entries_done: int
    events_done: int
    created_at: Moment
    salt: str
    """Hex. The ledger's entry of the order says SHA-256(salt ‖ filter), which tells nothing to whoever lacks it."""
    file: str
    """Where to fetch it."""


class ExportRow(msgspec.Struct, frozen=True):
    """A row of `export`."""

    export: UUID
    format: Format
    filter: bytes
    salt: bytes
    epoch: int
    size: int
    first: int
    end: int
    note: str
    timestamp: bytes | None
    identifiers: list[bytes]
    tenures: list[int]
    events: list[int]
    accounts: list[bool]
    status: Progress
    entries_done: int
    events_done: int
    created_at: datetime

    @property
    def wanted(self) -> Filter:
        """What it was ordered with."""
        return FILTER.decode(self.filter)


FILTER = msgspec.json.Decoder(Filter)
