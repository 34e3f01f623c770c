"""Two promises, tried with every kind of caller on every operation.

No tenant learns, depends on or changes anything of another one. Three tenants call themselves and their people by the
same names and record different things about them. Each calls with its own ids and with another one's; what it is
answered has to be what it would be answered had the others never done anything. Two walls see to that: the conditions
of the queries, and row-level security. Each is tried alone as well.

And nobody without the right to speak about somebody changes anything of what is answered about them.
"""

from __future__ import annotations

import asyncio
import copy
import io
import random
import re
import time
import uuid
import zipfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import jwt
import msgspec
import pytest
from conftest import NOTICE
from cryptography.hazmat.primitives.asymmetric import ec
from msgspec.structs import replace
from test_sql import fresh_database

from consent_service import app, auth, clock, db, demo, ids, keys, ledger, operations, tenants, vault
from consent_service.devices import Device, Devices
from consent_service.errors import ConsentError
from consent_service.guard import Operation
from consent_service.ledger import entry, export, tiles
from consent_service.ledger.proof import Proof
from consent_service.policies import Duration, Issuer, Policy, store
from consent_service.settings import Settings
from consent_service.subjects import Hasher
from consent_service.tokens import verify

# -- who calls --------------------------------------------------------------------------------------------------------

KEYS: dict[str, tuple[auth.Kind, frozenset[auth.Scope]]] = {
    **demo.KEYS,
    "publishable": ("publishable", keys.PUBLIC),
    "second": demo.KEYS["dpo"],
    "admin": ("officer", auth.ROLES["admin"]),
    "weak": ("service", frozenset({"check"})),
    "linker": ("service", frozenset({"links"})),
    "reader": ("service", frozenset({"state"})),
}
TOKENS = ("person", "machine", "staff")
"""Callers with tokens of issuers that the tenant trusts."""
CALLERS = ("nobody", *KEYS, *TOKENS)

LOGIN, MACHINES, STAFF = (f"https://{name}.example" for name in ("login", "machines", "staff"))
SIGNING, STRANGE = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
JWKS = {"keys": [{**jwt.algorithms.ECAlgorithm.to_jwk(SIGNING.public_key(), as_dict=True), "kid": "k"}]}


def issuers(word: str) -> tuple[Issuer, ...]:
    """The same three for every tenant; audience and client tell the tenants apart."""

    def one(url: str, kind: Any, **more: Any) -> Issuer:
        return Issuer(issuer=url, kind=kind, audience=f"https://{word}.example", jwks_uri=f"{url}/jwks",
                      algorithms=("ES256",), max_lifetime=Duration(seconds=7_200), **more)  # fmt: skip

    return (
        one(LOGIN, "login", clients=(f"shop-{word}",)),
        one(MACHINES, "service", clients=("c",), scopes=("check", "write:attested", "links", "state")),
        one(STAFF, "officer", roles={"boss": "admin"}),
    )


def signed(kind: str, issuer: str, audience: str, *, key: Any = SIGNING, good_s: int = 500, **more: Any) -> str:
    """A token."""
    now = int(time.time())
    claims = {"iss": issuer, "aud": audience, "sub": "ada", "client_id": "c", "iat": now - 5, "exp": now + good_s,
              "jti": "j", **more}  # fmt: skip
    return jwt.encode(claims, key, "ES256" if key else "none", headers={"typ": kind, "kid": "k"})


def access(word: str, issuer: str = LOGIN, **more: Any) -> str:
    return signed("at+jwt", issuer, f"https://{word}.example", good_s=7_000, **more)


# -- tenants ----------------------------------------------------------------------------------------------------------

ADA = {"type": "login", "id": f"{LOGIN}|ada"}
BOB = {"type": "login", "id": f"{LOGIN}|bob"}
KIM = {"type": "login", "id": "kim"}
GONE = {"type": "login", "id": "gone"}
PHONE = {"type": "phone", "id": "+49 30 23125 042"}
DRONE = {"type": "asset", "id": "SN-1"}
HOME = {"type": "household", "id": "home"}
CARDS = ("ended", "asked", "annulled", "late", "card", "van")
"""Things that Bob is linked to, by what becomes of the links."""
LINKS = ("device", "phone", "drone", "group", "guardian", *CARDS, "export", "history")
"""What stands in addresses; exports too."""
ALIKE = {name: uuid.uuid5(uuid.NAMESPACE_DNS, name) for name in ("late", "card", "van", "history")}
"""What has the same id in every tenant."""
AGE_OUT = f"{clock.now().year + 3}-05-01"

WORDS = ("heron", "kestrel", "osprey")
"""The tenants: each word stands in everything that only this tenant has."""
ACTING = WORDS[:2]
"""Those that call; the third only has something to lose."""
DIFFERENT = {
    "heron": ("given", "given", "personalisation"),
    "kestrel": ("refused", "objected", "profiling"),
    "osprey": ("withdrawn", "given", "comfort.preferences"),
}
"""What each records: Ada about analytics, the household about sharing, and what two identifiers disagree on."""


@dataclass
class Tenant:
    word: str
    log_id: int
    keys: dict[str, str]
    """What callers send, tokens as well."""
    device: Device
    spare: Device
    nonce: str = ""
    """Of a challenge for the spare device."""
    links: dict[str, str] = field(default_factory=dict)
    receipt: str = ""
    """Of what was said about a purpose that only this tenant has."""
    told: set[str] = field(default_factory=set)
    """Every id in its answers."""

    def __post_init__(self) -> None:
        self.keys |= {
            "person": access(self.word, jti=f"person-{self.word}"),
            "machine": access(self.word, MACHINES, scope="check write:attested links state"),
            "staff": access(self.word, STAFF, roles=["boss"]),
        }

    @property
    def contact(self) -> str:
        return f"ada@{self.word}.example"

    @property
    def club(self) -> dict[str, Any]:
        """What was said about a purpose that only this tenant has."""
        return {"id": f"club-{self.word}", "subject": BOB, "records": [said(f"club.{self.word}", "refused")]}

    @property
    def start(self) -> int:
        """Where its ledger begins: two are soon of the same size, one is far ahead."""
        return {"heron": 1_000, "kestrel": 2_000, "osprey": 1_003}[self.word]

    @property
    def rev(self) -> str:
        return f"1.{self.start + 5}"

    @property
    def version(self) -> int:
        """Of its policy in force."""
        return len(WORDS) - WORDS.index(self.word)

    @property
    def visit(self) -> dict[str, Any]:
        """By which a device is minted."""
        return {"id": str(uuid.uuid5(uuid.NAMESPACE_DNS, self.word)), "records": [said("analytics", "given")],
                "notice": NOTICE, "method": "banner_button", "evidence": {"page": "start"}}  # fmt: skip

    def id_token(self, nonce: str) -> str:
        return signed("JWT", LOGIN, f"shop-{self.word}", nonce=nonce)

    def secrets(self) -> set[str]:
        """What no other tenant may be told, beside the ids in its answers."""
        devices = [text for one in (self.device, self.spare) for text in (one.token, one.subject.id)]
        links = set(self.links.values()) - {str(one) for one in ALIKE.values()}
        return {self.word, self.nonce, *devices, *links, *self.keys.values()}


def named(device: Device) -> dict[str, str]:
    return {"type": device.subject.type, "id": device.subject.id}


def said(purpose: str, status: str, channel: str | None = "web", **more: Any) -> dict[str, Any]:
    return {"purpose": purpose, "status": status, "channel": channel, **more}


def act(key: str, subject: dict[str, str], *records: dict[str, Any], seen: str = "", **more: Any) -> dict[str, Any]:
    return {"id": key, "subject": subject, "records": records, "notice": NOTICE, "method": "form",
            "evidence": {"seen": seen}, **more}  # fmt: skip


SAME = {"subject": BOB, "records": [said("profiling", "given")], "notice": NOTICE, "method": "form"}
"""What every tenant recorded to the letter, under idempotency keys of its own."""


def policy_of(policy: Policy, word: str, version: int) -> Policy:
    """The tenant's word wherever a policy shows in answers, and a purpose that the others do not have."""
    offer, analytics = policy.purposes["offer.automated"], policy.purposes["analytics"]
    assert offer.significant_adm is not None
    decision = replace(offer.significant_adm, human_contact=f"human@{word}.example")
    own = {offer.id: replace(offer, significant_adm=decision), f"club.{word}": replace(analytics, id=f"club.{word}")}
    tenant = replace(
        policy.tenant, public_ledger=False, cookie_domain=f"v{version}.{word}.example", issuers=issuers(word)
    )
    return replace(policy, tenant=tenant, purposes={**policy.purposes, **own})


# -- the service ------------------------------------------------------------------------------------------------------


class Sent(NamedTuple):
    """What is sent beside the credential."""

    body: Any = None
    link: str = ""
    """In the address."""
    key: str | None = None
    """Idempotency key in the header."""


class Answer(NamedTuple):
    status: int
    headers: tuple[tuple[str, str], ...]
    body: str

    def json(self) -> Any:
        return msgspec.json.decode(self.body)


def text(body: bytes) -> str:
    """Tiles are no text."""
    return body.decode(errors="backslashreplace")


class World:
    """The whole application on a database of its own."""

    def __init__(self, made: app.Services, owner: asyncpg.Connection[Any], inhabitants: dict[str, Tenant]) -> None:
        self.made = made
        self.owner = owner
        self.app = app.build(made)
        self.tenants = inhabitants
        self.calls = 0
        self._rows: tuple[Any, dict[str, str]] = (None, {})

    async def call(self, bearer: str | None, operation: Operation, sent: Sent) -> Answer:
        """Straight into the application, without a network between."""
        self.calls += 1
        raw = b"" if sent.body is None else sent.body
        raw = raw if isinstance(raw, bytes) else msgspec.json.encode(raw)
        path = operation.path.replace("{id}", sent.link).replace("{tenant}", sent.link)
        path = path.replace("{tile*}", "entries/000.p/1").replace("{epoch}", "1")
        media = "application/x-www-form-urlencoded" if operation.form else "application/json"
        fields = {"authorization": bearer and f"Bearer {bearer}", "idempotency-key": sent.key,
                  "content-length": str(len(raw)), "content-type": media if operation.body else None}  # fmt: skip
        head = [(name.encode(), value.encode()) for name, value in fields.items() if value is not None]
        scope = {"type": "http", "method": operation.method, "path": path, "raw_path": path.encode(), "headers": head,
                 "query_string": b"", "root_path": "", "scheme": "http", "http_version": "1.1"}  # fmt: skip
        parts: list[Any] = []

        asked: list[bytes] = [raw]

        async def receive() -> dict[str, Any]:
            if not asked:
                await asyncio.Event().wait()  # nobody leaves
            return {"type": "http.request", "body": asked.pop(), "more_body": False}

        async def send(message: Any) -> None:
            parts.append(message)

        await self.app(scope, receive, send)
        headers = tuple((name.decode(), value.decode()) for name, value in parts[0]["headers"])
        whole = b"".join(part.get("body", b"") for part in parts)
        if parts[-1].get("more_body"):
            whole = b"cut off"
        return Answer(parts[0]["status"], headers, text(whole) if whole[:2] != b"PK" else exported(whole))

    async def rows(self, whose: str = "log_id > 0") -> dict[str, str]:
        """A fingerprint of everything that is stored for tenants, by table."""
        written = await self.owner.fetchval("SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
        if self._rows[0] != (written, whose):  # else no transaction has written anything since
            found = await self.owner.fetch(" UNION ALL ".join(
                f"""SELECT '{table}' AS name, md5(string_agg(t::text, chr(10) ORDER BY t::text)) AS rows
                    FROM {table} t WHERE {whose}"""
                for table in await self.tables()
            ))  # fmt: skip
            self._rows = (written, whose), {row["name"]: row["rows"] for row in found}
        return self._rows[1]

    async def others(self, me: Tenant) -> dict[str, str]:
        """That of all tenants but one."""
        return await self.rows(f"log_id <> {me.log_id}")

    async def tables(self) -> list[str]:
        """Every table whose rows belong to tenants."""
        found = await self.owner.fetch(
            """SELECT table_name FROM information_schema.columns
               WHERE table_schema = 'public' AND column_name = 'log_id' ORDER BY 1"""
        )
        return [row["table_name"] for row in found]


def exported(file: bytes) -> str:
    """What an export tells that is no hash and no salt."""
    with zipfile.ZipFile(io.BytesIO(file)) as box:
        lines = [msgspec.json.decode(line, type=export.Line) for line in box.open("events.ndjson")]
        erased = [line.decode() for line in box.open("erasures.ndjson") if line.startswith(b"[")]
        manifest = msgspec.json.decode(box.read("manifest.json"), type=export.Manifest)
        raw = box.read("strands.json") if "strands.json" in box.namelist() else b"[]"
    strands = sorted(
        (one.tenure, one.events, one.account) for one in msgspec.json.decode(raw, type=list[export.Strand])
    )
    facts = (manifest.origin, manifest.size, manifest.first, manifest.end, manifest.counts)
    return "\n".join(
        [str(facts), str(strands), *(f"{line.index} {bytes(line.payload).decode()}" for line in lines), *erased]
    )


@asynccontextmanager
async def serving(settings: Settings, url: str, inhabitants: dict[str, Tenant]) -> AsyncIterator[World]:
    """One process of the service; the next one on the same database knows nothing of what it remembers."""

    async def fetch(_uri: str) -> bytes:
        return msgspec.json.encode(JWKS)

    owner = await asyncpg.connect(url)
    try:
        name = await owner.fetchval("SELECT current_database()")
        await owner.execute(
            f'ALTER DATABASE "{name}" SET synchronous_commit = off'
        )  # the disk has nothing to prove here
        async with app.services(settings, url) as made:
            made.callers._verifier._jwks._fetch = fetch
            yield World(made, owner, inhabitants)
    finally:
        await owner.close()


async def move_in(world: World, policy: Policy) -> None:
    """Three tenants with policies, keys and devices, and nothing recorded."""
    secret = world.made.ledgers._secret
    async with db.connection(world.made.pool) as connection:
        for word in WORDS:
            log_id = await tenants.ensure(connection, word)
            made = {
                name: await keys.add_key(
                    connection, secret,
                    auth.Credential(log_id, name, kind, f"{name} of {word}", scopes, frozenset(), None),
                )
                for name, (kind, scopes) in KEYS.items()
            }  # fmt: skip
            device, spare = (world.made.devices.mint(log_id, bytes([n]) * 16) for n in (1, 2))
            me = world.tenants[word] = Tenant(word, log_id, made, device, spare)
            for version in range(me.version):
                await tenants.apply_policy(connection, log_id, store.Policies(), policy_of(policy, word, version))
            async with connection.transaction():
                tip = await ledger.lock_head(connection, log_id)
                said = [entry.PolicyApplied(at=tip.now, version=n, sha256=word) for n in range(tip.size, me.start)]
                await ledger.append(connection, log_id, tip, list(map(entry.system, said)), tip.now)
                await tiles.store(connection, log_id, me.start)


async def do(world: World, me: Tenant, caller: str, operation: Operation, sent: Sent) -> Any:
    """A call that has to succeed."""
    answer = await world.call(me.keys[caller], operation, sent)
    assert answer.status in (200, 201, 202), (operation.id, sent, answer)
    learn(me, answer, sent)
    return answer.json()


async def furnish(world: World, me: Tenant) -> None:
    """Everything that a tenant can hold."""

    async def record(key: str, subject: dict[str, str], *records: Any, by: str = "service", **more: Any) -> None:
        await do(world, me, by, operations.RECORD, Sent(act(key, subject, *records, seen=me.word, **more)))

    status, at_home, disputed = DIFFERENT[me.word]
    contacts = [said("marketing.email", "given", "email", contact=to) for to in (me.contact, "ada@shop.example")]
    await record("order-1", ADA, said("analytics", status), *contacts)
    await record("order-2", ADA, said(disputed, "refused"))
    await record("order-3", PHONE, said(disputed, "given"))
    await record("order-4", HOME, said("share.partner", at_home))
    await record("order-6", GONE, said(disputed, "given"))
    onboarding = {"id": "drone-onboarding", "version": 1, "language": "en"}
    await record("order-5", DRONE, said("telemetry.drone", "given", "device"), notice=onboarding)
    for device in (me.device, me.spare):
        await record("visit", named(device), said("analytics", status), by="publishable", proof=device.token)
    await do(world, me, "service", operations.RECORD, Sent({**SAME, "id": f"order-{me.word}"}))
    me.receipt = (await do(world, me, "service", operations.RECORD, Sent(me.club)))["receipt"]
    await do(world, me, "publishable", operations.DEVICE, Sent(me.visit))
    await furnish_links(world, me)
    await do(world, me, "admin", operations.REVOKE, Sent({"issuer": LOGIN, "jti": "old"}))
    await world.owner.execute(
        """INSERT INTO revocation (log_id, what, expires_at) VALUES ($1, 'long over', now() - interval '2 days')""",
        me.log_id,
    )
    for statement in BY_HAND:
        await world.owner.execute(statement, me.log_id)
    for name, wanted in (("export", {"kinds": ["consent"]}), ("history", {"subject": ADA})):
        with identified(name):
            me.links[name] = (await do(world, me, "dpo", operations.EXPORT, Sent(wanted)))["id"]


BY_HAND = (
    "INSERT INTO checkpoint (log_id, epoch, size, note, published_at) VALUES ($1, 1, 1, 'x', now())",
    """INSERT INTO erasure (log_id, erasure, idx, reason, salt, events, erased_at)
       VALUES ($1, '01a20040-0000-7000-8000-000000000001', 1, 'request', 'x', 1, now())""",
    """INSERT INTO hold (log_id, idx, erasure, identifier, event, until, key, opening)
       VALUES ($1, 0, '01a20040-0000-7000-8000-000000000001', 'x', '01a20040-0000-7000-8000-000000000001', now(),
               'x', 'x')""",
    "INSERT INTO erased (log_id, idx, erasure) VALUES ($1, 0, '01a20040-0000-7000-8000-000000000001')",
    "INSERT INTO import (log_id, list, reading, salt) VALUES ($1, 'x', '01a20040-0000-7000-8000-000000000001', 'x')",
)


@contextmanager
def identified(name: str) -> Iterator[None]:
    """What is made first has the id that is the same everywhere, if it is to have one."""
    with pytest.MonkeyPatch.context() as patch:
        if name in ALIKE:
            made, first = ids.event_id, iter([ALIKE[name]])
            patch.setattr(ids, "event_id", lambda: next(first, None) or made())
        yield


async def furnish_links(world: World, me: Tenant) -> None:
    async def link(name: str, identifier: dict[str, str], **more: Any) -> None:
        sent = Sent({"identifier": identifier, "evidence": {"seen": me.word}, **more})
        me.links[name] = (await do(world, me, "service", operations.LINK, sent))["link"]

    await link("device", named(me.device), proof=me.device.token, login=ADA)
    await link("phone", PHONE, login=ADA)
    await link("drone", DRONE, login=BOB)
    await link("group", ADA, group=HOME)
    await link("guardian", KIM, guardian=ADA, age_out=AGE_OUT)
    for name in CARDS:
        with identified(name):
            await link(name, {"type": "loyalty", "id": name}, login=BOB)
    await do(world, me, "service", operations.END, Sent({}, me.links["ended"]))
    for name, officer in (("asked", "dpo"), ("annulled", "dpo"), ("annulled", "second"), ("late", "dpo")):
        await do(world, me, officer, operations.ANNUL, Sent({"reason": me.word}, me.links[name]))


def pretend(me: Tenant) -> None:
    """Ids as they might be had the tenant ever done anything."""
    me.links = {name: str(ALIKE.get(name) or ids.event_id()) for name in LINKS}
    me.receipt = str(Proof(b"", 0, (), f"localhost/{me.word}\n"))


# -- what tenants call ------------------------------------------------------------------------------------------------


def subjects(me: Tenant, them: Tenant) -> list[dict[str, Any]]:
    """Whom calls are about: one who has the same name everywhere, and devices, each with each one's token."""
    mine, theirs = me.device, them.device
    return [
        {"subject": ADA, "proof": None},
        *({"subject": named(one), "proof": token} for one in (mine, theirs) for token in (mine.token, theirs.token)),
    ]


def calls(me: Tenant, them: Tenant, caller: str) -> dict[str, list[Sent]]:
    """What a caller sends to each operation: with its tenant's ids, and with those of another tenant."""
    return {**writes(me, them, caller), **reads(me, them), **linking(me, them, caller), **others(me, them, caller)}


def writes(me: Tenant, them: Tenant, caller: str) -> dict[str, list[Sent]]:
    seen = said("analytics", "given")
    about = [act(f"{caller}-{n}", ADA, seen, seen=me.word) | one for n, one in enumerate(subjects(me, them))]
    child = act(f"{caller}-kim", KIM, said("profiling", "given"), guardian=ADA)
    again = [Sent({**SAME, "id": f"order-{them.word}"}), Sent(SAME, key=f"order-{me.word}"), Sent(them.club)]
    return {
        "recordConsents": [*map(Sent, about), Sent(child), *again],
        "mintDevice": [Sent(me.visit), Sent(them.visit), Sent({})],
    }


def reads(me: Tenant, them: Tenant) -> dict[str, list[Sent]]:
    about = subjects(me, them)
    check = [{**one, "purpose": "analytics", "channel": "web", "explain": True} for one in about]
    mail = {"subject": ADA, "purpose": "marketing.email", "channel": "email", "recipient": "postwerk"}
    check += [{**mail, "contact": one.contact, "explain": True} for one in (me, them)]
    offer = {"subject": ADA, "purpose": "offer.automated", "channel": "web", "explain": True, "context": {"age": 30}}
    late = [{**offer, "at_least": one.rev, "require": "fresh"} for one in (me, them)]
    everybody = [{"subject": one} for one in (ADA, named(me.device), named(them.device), PHONE, KIM, DRONE)]
    return {
        "check": [*map(Sent, [*check, offer, *late])],
        "checkMany": [Sent({"checks": [*check, offer]}), *(Sent({"checks": [one]}) for one in late)],
        "showReceipt": [
            *(Sent({"receipt": me.receipt, "language": "en", "format": form}) for form in ("text", "html", "json")),
            *(Sent({"receipt": one}) for one in (them.receipt, "nonsense")),
        ],
        "readState": [*map(Sent, [*about, {"subject": PHONE}])],
        "readHistory": [
            *map(Sent, everybody),
            *(Sent({"subject": ADA, "limit": 1, "after": after}) for after in (1, (1 << 40) + 1)),
        ],
        "readLinks": [*map(Sent, everybody)],
        "readConflicts": [
            Sent({}),
            *(Sent({"after": one.links["phone"], "limit": 1}) for one in (me, them)),
            *(Sent({"subject": named(one.device)}) for one in (me, them)),
        ],
        "orderExport": [
            Sent({}),
            *(Sent({"subject": named(one.device)}) for one in (me, them)),
            Sent({"subject": PHONE, "kinds": ["link"], "actors": ["service"], "from": "2020-01-01T00:00:00Z"}),
            Sent({"purposes": ["analytics"], "channels": ["web"], "statuses": ["given"], "format": "csv",
                  "until": "2020-01-01T00:00:00Z"}),
            *(Sent({"purposes": [f"club.{one.word}"]}) for one in (me, them)),
        ],
        "readExport": [Sent(None, one.links[name]) for one in (me, them) for name in ("export", "history")],
        "fetchExport": [Sent(None, one.links[name]) for one in (me, them) for name in ("export", "history")],
    }  # fmt: skip


def linking(me: Tenant, them: Tenant, caller: str) -> dict[str, list[Sent]]:
    proved = [{"identifier": one["subject"], "proof": one["proof"]} for one in subjects(me, them)]
    tokens = [one.id_token(nonce) for one in (me, them) for nonce in (me.nonce, them.nonce)]
    spare = [{"identifier": named(one.spare), "proof": one.spare.token} for one in (me, them)]
    soon, seen = f"{clock.now().year + 1}-01-01T00:00:00Z", {"seen": me.word}
    return {
        "challengeLink": [*map(Sent, proved)],
        "link": [
            *(Sent({**one, "login": BOB, "replace": caller == "machine"}) for one in proved[1:]),
            Sent({"identifier": PHONE, "login": KIM["id"], "until": soon, "evidence": seen}),
            Sent({"identifier": BOB, "group": HOME}),
            Sent({"identifier": BOB, "guardian": ADA, "age_out": AGE_OUT, "evidence": seen}),
            *(Sent({**one, "id_token": token}) for one in spare for token in tokens),
        ],
        "endLink": [
            Sent({}, me.links["van"]),
            *(Sent({"proof": one.device.token}, them.links["device"]) for one in (me, them)),
            *(Sent({}, them.links[name]) for name in ("drone", "group")),
            Sent({}, "nonsense"),
        ],
        "annulLink": [
            *(Sent({"reason": me.word}, me.links[name]) for name in ("late", "card")),
            *(Sent({"reason": me.word}, them.links[name]) for name in ("asked", "phone")),
        ],
    }


def others(me: Tenant, them: Tenant, caller: str) -> dict[str, list[Sent]]:
    ended = signed("logout+jwt", LOGIN, f"shop-{me.word}", sub="bob", events={verify.LOGOUT: {}})
    revoked = [{"issuer": LOGIN, "jti": f"person-{them.word}"}, {"issuer": f"https://{them.word}.example", "jti": "x"}]
    return {
        "eraseSubject": [
            *(Sent({"subject": one, "dry_run": True}) for one in (ADA, named(me.device), named(them.device))),
            Sent({"subject": GONE}),
        ],
        "revokeToken": [*map(Sent, revoked)],
        "backChannelLogout": [Sent(f"logout_token={ended}".encode()), Sent(b"logout_token=a.b.c")],
        "metrics": [Sent()] if caller in ("nobody", "service", "person") else [],  # takes its time
        **{name: [Sent(link=one.word) for one in (me, them)] for name in (*CHECKPOINTS, *TILES)},
        **{name: [Sent()] for name in ("live", "ready", "docs", "openapi")},
    }


def test_every_operation_and_every_field_is_called() -> None:
    """An operation, or a field of a body, that this file does not know fails here."""
    minting, blank = Devices(b"some secret"), dict.fromkeys(LINKS, "link")
    mine, theirs = (Tenant(word, 1, {}, minting.mint(1), minting.mint(1), "nonce", blank) for word in ACTING)
    sending = calls(mine, theirs, "service")
    assert sending.keys() == {operation.id for operation in operations.ALL}
    for operation in operations.ALL:
        assert sending[operation.id], operation.id
        if operation.body is not None and not operation.form:
            sent = {name for one in sending[operation.id] for name in one.body}
            assert sent == {one.encode_name for one in msgspec.structs.fields(operation.body)}, operation.id
            assert "{" not in operation.path or any(one.link for one in sending[operation.id])


# -- what they are answered -------------------------------------------------------------------------------------------

IDS = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|d[vt]_[0-9]+_[\w-]{22}(?:_[\w-]{43})?")
PASSING = re.compile(
    r'[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.]+Z|(?<="nonce":")[\w-]+|(?<="error_id":")\w+|(?<="receipt":")[^"]+'
    r'|(?<="subject":")[0-9a-f]{32}|(?<="salt":")[0-9a-f]{64}'
    r"|[0-9]{1,2} [A-Z][a-z]+ [0-9]{4}, [0-9:]{5} \(UTC\)|\b(client|officer|person):[0-9a-f]{32}\b"
)


def learn(me: Tenant, answer: Answer, sent: Sent) -> None:
    me.told.update(set(IDS.findall(answer.body)) - set(IDS.findall(str(sent))))


CHECKPOINTS, TILES = ("readCheckpoint", "readEpochCheckpoint"), ("readTile", "readEpochTile")


@dataclass
class Run:
    """What one tenant was answered, and what passed between tenants meanwhile."""

    answers: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """By call; an id as the how-manieth it is, times left out."""
    leaks: list[tuple[str, str]] = field(default_factory=list)
    """In which way, and where."""
    seen: dict[str, str] = field(default_factory=dict)

    def note(self, label: str, operation: Operation, answer: Answer) -> None:
        headers = [(name, self.masked(text)) for name, text in answer.headers if name != "content-length"]
        # Metrics count what went before; an entry has the length of its time.
        body = "" if operation.id in ("metrics", *TILES) and answer.status == 200 else answer.body
        if answer.status == 200 and operation.id in ("readState", "readConflicts", "eraseSubject"):
            body = msgspec.json.encode(ordered(answer.json())).decode()
        self.answers[label] = (answer.status, headers, body if operation.tag == "operation" else self.masked(body))

    def masked(self, text: str) -> str:
        return IDS.sub(lambda found: self.seen.setdefault(found[0], f"<{len(self.seen)}>"), PASSING.sub("<>", text))


def ordered(tree: Any) -> Any:
    """Identifiers come as their rows happen to lie, and contacts by their hashes."""
    for name in ("identifiers", "states"):
        if name in tree:
            tree[name].sort(key=msgspec.json.encode)
    for one in tree.get("conflicts", ()):
        ordered(one)
    return tree


async def run(world: World, me: Tenant, them: Tenant) -> Run:
    """Every call of every caller of one tenant; `them`: whose ids it uses beside its own."""
    made = Run()
    for one in world.tenants.values():
        one.nonce, _ = world.made.linker._challenges.give(one.log_id, one.spare.subject)
    foreign = [await secrets_of(world, tenant) for tenant in world.tenants.values() if tenant is not me]
    known: set[tuple[Any, ...]] = set()
    before = await world.others(me)
    for caller in CALLERS:
        sending = calls(me, them, caller)
        for operation in operations.ALL:
            label = f"{me.word}: {caller}: {operation.id}"
            for n, sent in enumerate(sending[operation.id]):
                answer = await world.call(me.keys.get(caller), operation, sent)
                made.note(f"{label} {n}", operation, answer)
                if answer[1:] not in known:  # refusals are all alike, and the documents large
                    made.leaks += [("told", f"{label} {n}: {what}") for what in told(answer, sent, foreign)]
                    known.add(answer[1:])
                if answer.status >= 500:
                    made.leaks.append(("failed", f"{label} {n}"))
                if not operation.public:
                    learn(me, answer, sent)
            after = await world.others(me)
            made.leaks += [("changed", f"{label}: {table}") for table in before if before[table] != after[table]]
            before = after
    await operate(world, me, them, made, foreign)
    after = await world.others(me)
    made.leaks += [("changed", f"operator: {table}") for table in before if before[table] != after[table]]
    return made


Secrets = tuple[set[str], set[str]]
"""Of a tenant: texts, and ids."""


async def secrets_of(world: World, tenant: Tenant) -> Secrets:
    stored = await world.owner.fetch(
        """SELECT event::text AS id FROM event WHERE log_id = $1
           UNION ALL SELECT link::text FROM link WHERE log_id = $1""",
        tenant.log_id,
    )
    alike = {str(one) for one in ALIKE.values()}
    return tenant.secrets(), (tenant.told | {row["id"] for row in stored}) - alike


def told(answer: Answer, sent: Sent, foreign: list[Secrets]) -> Iterator[str]:
    """What belongs to another tenant and was not sent."""
    text = f"{answer.headers} {answer.body}"
    known, found = str(sent), set(IDS.findall(text))
    for secrets, ids_told in foreign:
        for one in {one for one in secrets if one in text} | (ids_told & found):
            if one not in known:
                yield one


async def operate(world: World, me: Tenant, them: Tenant, made: Run, foreign: list[Secrets]) -> None:
    """What an operator does on the command line, with a connection of the service."""
    secret, log_id = world.made.ledgers._secret, me.log_id
    new = auth.Credential(log_id, "extra", "service", "extra", frozenset({"check"}), frozenset(), None)
    policy = await world.made.ledgers.of(log_id).policies.get(world.owner, log_id, me.version)
    wanted = replace(
        policy, purposes={**policy.purposes, "analytics": replace(policy.purposes["analytics"], evidence="login")}
    )
    async with db.connection(world.made.pool, log_id) as connection:
        steps: dict[str, Callable[[], Awaitable[Any]]] = {
            "create": lambda: keys.create_key(connection, secret, new),
            "replace": lambda: keys.add_second_key(connection, secret, log_id, "extra"),
            "drop": lambda: keys.drop_old_key(connection, secret, log_id, "extra"),
            "revoke": lambda: keys.revoke(connection, secret, log_id, "extra"),
            "list": lambda: keys.list_keys(connection, log_id),
            "ask": lambda: keys.is_valid(connection, secret, log_id, "service", them.keys["service"]),
            "plan": lambda: tenants.plan_policy(connection, log_id, store.Policies(), wanted),
            "apply": lambda: tenants.apply_policy(connection, log_id, store.Policies(), wanted),
            "plan again": lambda: tenants.plan_policy(connection, log_id, store.Policies(), wanted),
        }
        for name, step in steps.items():
            try:
                found = str(await step())
            except (ConsentError, asyncpg.PostgresError) as error:
                found = str(error)
            found = re.sub(r"_at=(None|datetime\.datetime\([^)]*\))|_[\w-]{43}(?![\w-])|[0-9-]{10}", "", found)
            made.answers[f"{me.word}: operator: {name}"] = (found,)
            made.leaks += [("told", f"operator: {name}: {one}") for one in told(Answer(0, (), found), Sent(), foreign)]


# -- the walls --------------------------------------------------------------------------------------------------------

OWN = re.compile(r"\b(\w+\.)?log_id = \$1(?![0-9])")
"""The first wall: whose rows a query means."""
SHARED = frozenset({"tenant"})
"""Tables that everybody reads, whole."""


class Stock(NamedTuple):
    """A database of which copies are used."""

    url: str
    tenants: dict[str, Tenant]


@asynccontextmanager
async def furnished(settings: Settings, url: str, policy: Policy, who: tuple[str, ...] = WORDS) -> AsyncIterator[Stock]:
    """Some of the tenants have done everything, and the others nothing."""
    async with fresh_database(url) as fresh:
        await db.migrate(fresh)
        async with serving(settings, fresh, {}) as world:
            await move_in(world, policy)
            for word, tenant in world.tenants.items():
                if word in who:
                    await furnish(world, tenant)
                else:
                    pretend(tenant)
        yield Stock(fresh, world.tenants)


@asynccontextmanager
async def opened(settings: Settings, stock: Stock) -> AsyncIterator[World]:
    """The service on a copy of a database."""
    place, name = urlsplit(stock.url), f"test_{uuid.uuid4().hex[:12]}"
    maker = await asyncpg.connect(urlunsplit(place._replace(path="/postgres")))
    try:
        await maker.execute(f'CREATE DATABASE "{name}" TEMPLATE "{place.path[1:]}"')
        url = urlunsplit(place._replace(path=f"/{name}"))
        async with serving(settings, url, copy.deepcopy(stock.tenants)) as world:
            yield world
        await maker.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
    finally:
        await maker.close()


def without_first(patch: pytest.MonkeyPatch, *, spared: str | None = None, only: db.Query | None = None) -> None:
    """Queries mean the rows of all tenants."""
    for query in db.Query.all if only is None else [only]:
        if spared is None or not query.name.startswith(spared):
            patch.setattr(query, "sql", OWN.sub(r"\1log_id >= 0 AND $1::int >= 0", query.sql))


async def without_second(world: World) -> None:
    """The database shows all rows to everybody."""
    for table in await world.tables():
        await world.owner.execute(f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")


def without_third(patch: pytest.MonkeyPatch) -> None:
    """Equal names have equal hashes everywhere, and what is sealed for one tenant can be opened for another."""
    begin = Hasher.__init__
    patch.setattr(Hasher, "__init__", lambda self, secret, _log_id: begin(self, secret, 0))
    patch.setattr(vault, "_aad", lambda place: b"%d\0" % place.tenure + place.identifier)


@pytest.fixture(scope="module")
async def stock(settings: Settings, database_url: str, demo_policy: Policy) -> AsyncIterator[Stock]:
    async with furnished(settings, database_url, demo_policy) as made:
        yield made


@pytest.fixture(scope="module")
async def alike(settings: Settings, database_url: str, demo_policy: Policy) -> AsyncIterator[Stock]:
    """Filled without the third wall."""
    patch = pytest.MonkeyPatch()
    without_third(patch)
    async with furnished(settings, database_url, demo_policy) as made:
        patch.undo()
        yield made


@pytest.fixture(scope="module")
async def world(settings: Settings, stock: Stock) -> AsyncIterator[World]:
    """As built."""
    async with opened(settings, stock) as made:
        yield made


def neighbour(made: dict[str, Tenant], word: str) -> Tenant:
    """Whose ids a tenant uses."""
    return made[WORDS[(WORDS.index(word) + 1) % len(WORDS)]]


@pytest.fixture(scope="module")
async def alone(settings: Settings, database_url: str, demo_policy: Policy) -> dict[str, Run]:
    """What each tenant is answered where the others never did anything."""
    runs = {}
    for word in ACTING:
        async with (
            furnished(settings, database_url, demo_policy, (word,)) as made,
            serving(settings, made.url, made.tenants) as world,
        ):
            runs[word] = await run(world, made.tenants[word], neighbour(made.tenants, word))
    return runs


async def leaks(world: World, alone: dict[str, Run]) -> list[tuple[str, str]]:
    """Everything by which a tenant might know of another one, or has done something to it."""
    found = []
    for word in ACTING:
        made = await run(world, world.tenants[word], neighbour(world.tenants, word))
        assert made.answers.keys() == alone[word].answers.keys()
        found += made.leaks
        found += [("differs", call) for call, answer in made.answers.items() if answer != alone[word].answers[call]]
    return found


def test_calls_alone_are_of_every_kind(alone: dict[str, Run]) -> None:
    for made in alone.values():
        assert made.leaks == []
        reached = {(call.split(" ")[2], answer[0]) for call, answer in made.answers.items() if "operator" not in call}
        for operation in operations.ALL:
            assert (operation.id, operation.status) in reached, "with the right credential it succeeds"
            assert operation.public or {(operation.id, 401), (operation.id, 403)} <= reached, operation.id


async def test_nothing_passes_between_tenants(settings: Settings, stock: Stock, alone: dict[str, Run]) -> None:
    async with opened(settings, stock) as world:
        assert await leaks(world, alone) == []


@pytest.mark.parametrize("wall", ["queries", "row-level security"])
async def test_nothing_passes_one_wall(
    settings: Settings, alike: Stock, alone: dict[str, Run], monkeypatch: pytest.MonkeyPatch, wall: str
) -> None:
    """Without the keyed hashes, which would hide much of what gets past it."""
    without_third(monkeypatch)
    if wall == "row-level security":
        without_first(monkeypatch)
    async with opened(settings, alike) as world:
        if wall == "queries":
            await without_second(world)
        assert await leaks(world, alone) == []


@pytest.mark.parametrize("hashes", ["equal hashes", pytest.param("hashes that differ", marks=pytest.mark.slow)])
async def test_control_without_walls_much_passes(
    settings: Settings,
    stock: Stock,
    alike: Stock,
    alone: dict[str, Run],
    monkeypatch: pytest.MonkeyPatch,
    hashes: str,
) -> None:
    """The same calls. Keys are still told apart: otherwise only the first tenant gets in."""
    without_first(monkeypatch, spared="auth.")
    if hashes == "equal hashes":
        without_third(monkeypatch)
    async with opened(settings, alike if hashes == "equal hashes" else stock) as world:
        await without_second(world)
        found = await leaks(world, alone)
    ways = Counter(way for way, _ in found)
    print(hashes, dict(ways))  # noqa: T201 -- with -s
    assert ways["differs"] > 400, ways
    assert ways["told"] > 10, ways
    assert ways["changed"] > 2, ways


UNFELT = {
    "exports.read_checkpoint": "no other of these ledgers has published a checkpoint of the same size",
    "exports.read_strands": "what is ordered without walls is not fetched; and then the keys are known from the events",
    "auth.note_use": "finds several rows where one is meant, and fails behind everybody's back",
    "tenures.read_names": "what has the same hash has the same name",
}
"""Queries whose condition can go without these calls finding it, and why."""


@pytest.mark.slow
async def test_control_every_condition_is_felt(
    settings: Settings, alike: Stock, alone: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the queries, one at a time loses its condition; there is no other wall."""
    without_third(monkeypatch)
    felt: dict[str, Counter[str]] = {}
    for query in [query for query in db.Query.all if OWN.search(query.sql)]:
        with monkeypatch.context() as patch:
            without_first(patch, only=query)
            async with opened(settings, alike) as world:
                await without_second(world)
                felt[query.name] = Counter(way for way, _ in await leaks(world, alone))
    print("\n".join(f"{name}: {dict(ways)}" for name, ways in felt.items()))  # noqa: T201 -- with -s
    assert {name for name, ways in felt.items() if not ways} == UNFELT.keys(), felt


# -- the second wall, by hand -----------------------------------------------------------------------------------------

REFUSED = asyncpg.InsufficientPrivilegeError


OF_ERASURE = {"erasure", "erased", "hold"}
"""Tables that only the role which erases may write."""


async def owned(world: World) -> set[str]:
    """Tables of which a tenant has rows of its own, and that the service works with."""
    return set(await world.tables()) - SHARED - OF_ERASURE


async def test_the_service_works_as_a_role_without_powers(world: World, services: app.Services) -> None:
    async with db.connection(services.pool) as connection:
        role = await connection.fetchrow("SELECT * FROM pg_roles WHERE rolname = current_user")
        assert role is not None
        assert role["rolname"] == db.APP
        powers = ("rolsuper", "rolbypassrls", "rolcreaterole", "rolcreatedb", "rolreplication", "rolcanlogin")
        assert [name for name in powers if role[name]] == []
        tables = await connection.fetch(
            """SELECT relname, relrowsecurity, pg_has_role(current_user, relowner, 'MEMBER') AS ours FROM pg_class
               WHERE relnamespace = 'public'::regnamespace AND relkind = 'r'"""
        )
    assert not any(row["ours"] for row in tables)
    assert {row["relname"] for row in tables if row["relrowsecurity"]} == {"deployment", *await world.tables()}


async def test_a_connection_sees_the_rows_of_one_tenant(world: World) -> None:
    for tenant in world.tenants.values():
        for table in await owned(world):
            count = f"SELECT count(*) FILTER (WHERE log_id = $1) AS own, count(*) AS every FROM {table}"
            there = await world.owner.fetchrow(count, tenant.log_id)
            async with db.connection(world.made.pool, tenant.log_id) as connection:
                seen = await connection.fetchrow(count, tenant.log_id)
            assert there is not None
            assert seen is not None
            assert 0 < there["own"] < there["every"], f"there is something to see in {table}"
            assert (seen["own"], seen["every"]) == (there["own"], there["own"]), table


async def test_whoever_erases_sees_and_erases_the_rows_of_one_tenant(world: World) -> None:
    mine, theirs = world.tenants["heron"].log_id, world.tenants["kestrel"].log_id
    before = await world.rows(f"log_id = {theirs}")
    async with db.connection(world.made.pool, mine) as connection:
        for table in OF_ERASURE:
            with pytest.raises(REFUSED):
                await connection.execute(f"DELETE FROM {table}")
        with pytest.raises(REFUSED):
            await connection.execute("SELECT FROM hold")
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SET LOCAL ROLE consent_erase")
        for table in OF_ERASURE | {"event", "strand", "contact", "consent_state", "link", "conflict"}:
            assert await connection.fetchval(f"SELECT count(*) FROM {table} WHERE log_id <> $1", mine) == 0
        for table in ("hold", "event", "strand", "contact", "consent_state", "link", "conflict"):
            assert await connection.fetchval(f"WITH d AS (DELETE FROM {table} RETURNING 1) SELECT count(*) FROM d") > 0
        for never in ("DELETE FROM ledger_entry", "DELETE FROM erased", "UPDATE erasure SET reason = ''",
                      "UPDATE ledger_head SET size = 0", "SELECT FROM credential"):  # fmt: skip
            async with expecting(connection):
                await connection.execute(never)
        await transaction.rollback()
    assert await world.rows(f"log_id = {theirs}") == before


@asynccontextmanager
async def expecting(connection: Any) -> AsyncIterator[None]:
    """A refusal, after which the transaction goes on."""
    with pytest.raises(REFUSED):
        async with connection.transaction():
            yield


async def test_a_connection_writes_the_rows_of_one_tenant(world: World) -> None:
    mine, theirs = world.tenants["heron"].log_id, world.tenants["kestrel"].log_id
    before = await world.rows()
    for table in await owned(world):
        row = await world.owner.fetchval(f"SELECT to_jsonb(t)::text FROM {table} t WHERE log_id = $1 LIMIT 1", theirs)
        insert = f"INSERT INTO {table} SELECT * FROM jsonb_populate_record(NULL::{table}, $1::jsonb)"
        async with db.connection(world.made.pool, theirs) as connection:
            with pytest.raises(asyncpg.UniqueViolationError):  # well formed, and there already
                await connection.execute(insert, row)
        async with db.connection(world.made.pool, mine) as connection:
            with pytest.raises(REFUSED, match="row-level security"):
                await connection.execute(insert, row)
            for theirs_too in (f"UPDATE {table} SET log_id = log_id", f"DELETE FROM {table}"):
                with suppress(REFUSED):
                    assert (await connection.execute(f"{theirs_too} WHERE log_id = {theirs}")).endswith(" 0"), table
            for never in (
                f"UPDATE {table} SET log_id = {theirs} WHERE log_id = {mine}",  # hand over one's own
                f"TRUNCATE {table}",
                f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY",
                f"DROP POLICY one_tenant ON {table}",
            ):
                with pytest.raises(REFUSED):
                    await connection.execute(never)
    assert await world.rows() == before


async def test_the_past_and_the_deployment_cannot_be_written(world: World) -> None:
    async with db.connection(world.made.pool, world.tenants["heron"].log_id) as connection:
        columns = {"ledger_entry": "idx", "ledger_tile": "n", "event": "idx", "migration": "version"}
        for table, column in columns.items():
            assert await connection.fetchval(f"SELECT count(*) FROM {table}") > 0
            for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}", f"TRUNCATE {table}"):
                with pytest.raises(REFUSED):
                    await connection.execute(statement)
        for statement in (
            "INSERT INTO migration (version, name) VALUES (99, 'x')",
            "DELETE FROM tenant",
            "CREATE TABLE mine (log_id integer)",
        ):
            with pytest.raises(REFUSED):
                await connection.execute(statement)


async def test_without_a_tenant_nothing_can_be_read_or_written(settings: Settings, stock: Stock) -> None:
    async with opened(settings, stock) as world, db.connection(world.made.pool) as connection:
        for table in await owned(world):
            for statement in (f"SELECT FROM {table}", f"UPDATE {table} SET log_id = log_id", f"DELETE FROM {table}"):
                with pytest.raises((asyncpg.UndefinedObjectError, REFUSED), match=rf"consent\.log_id|{table}"):
                    await connection.execute(statement)
            with pytest.raises(asyncpg.UndefinedObjectError):
                await connection.execute(f"SELECT FROM {table}")


async def test_a_connection_does_not_write_whom_another_tenant_trusts(world: World) -> None:
    mine, theirs = world.tenants["heron"].log_id, world.tenants["kestrel"].log_id
    before = await world.rows(f"log_id = {theirs}")
    async with db.connection(world.made.pool, mine) as connection:
        assert await connection.fetchval("SELECT count(*) FROM tenant") == len(WORDS), "everybody reads"
        assert await connection.execute(f"UPDATE tenant SET issuers = '[]' WHERE log_id = {theirs}") == "UPDATE 0"
        for statement in (
            f"UPDATE tenant SET log_id = 77 WHERE log_id = {mine}",
            f"INSERT INTO tenant VALUES ({theirs}, 'x') ON CONFLICT (log_id) DO UPDATE SET issuers = '[]'",
            f"DELETE FROM tenant WHERE log_id = {theirs}",
        ):
            with pytest.raises(REFUSED):
                await connection.execute(statement)
    assert await world.rows(f"log_id = {theirs}") == before


async def test_two_connections_serve_two_tenants(
    settings: Settings, stock: Stock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hundred requests at once."""
    served: dict[int, list[int]] = {}
    act_for = db.Session.act_for

    async def noted(self: db.Session, log_id: int) -> None:
        served.setdefault(id(self), []).append(log_id)
        await act_for(self, log_id)

    monkeypatch.setattr(db.Session, "act_for", noted)
    async with opened(replace(settings, pool=2), stock) as world:
        both = [world.tenants[word] for word in ACTING]
        asked = ((operations.HISTORY, Sent({"subject": ADA})), (operations.LINKS, Sent({"subject": BOB})))
        wanted = {
            (one.word, operation.id): await world.call(one.keys["dpo"], operation, sent)
            for one in both
            for operation, sent in asked
        }
        assert all(one.word in wanted[one.word, operation.id].body for one in both for operation, _ in asked)
        served.clear()

        async def ask(one: Tenant, operation: Operation, sent: Sent) -> None:
            assert await world.call(one.keys["dpo"], operation, sent) == wanted[one.word, operation.id]

        asking = [(one, *how) for one in both for how in asked] * 50
        random.Random(1).shuffle(asking)
        async with asyncio.TaskGroup() as group:
            for how in asking:
                group.create_task(ask(*how))
    assert [len(set(log_ids)) for log_ids in served.values()] == [2, 2], "each connection served both"
    turns = sum(one != other for log_ids in served.values() for one, other in pairwise(log_ids))
    assert turns > 20, "now the one tenant, now the other"


# -- keys and devices of another tenant -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KEYS)
async def test_a_key_with_another_tenants_number_is_refused(world: World, name: str) -> None:
    mine, theirs = world.tenants["heron"], world.tenants["kestrel"]
    operation = next(one for one in operations.ALL if one.scopes is not None and one.scopes & KEYS[name][1])
    assert (await world.call(mine.keys[name], operation, Sent({}))).status != 401
    before = await world.others(mine)
    for number in (theirs.log_id, f"0{mine.log_id}", f"{mine.log_id}{theirs.log_id}", 999_999_999, 0, ""):
        assert (await world.call(renumbered(mine.keys[name], number), operation, Sent({}))).status == 401
    assert await world.others(mine) == before


async def test_a_device_of_another_tenant_is_nobody(world: World) -> None:
    """Not even the one with the same random part."""
    mine, theirs = world.tenants["heron"], world.tenants["kestrel"]
    renamed = theirs.device.token.replace(f"dt_{theirs.log_id}_", f"dt_{mine.log_id}_")
    assert renamed[:-43] == mine.device.token[:-43]
    for subject in (mine.device, theirs.device):
        for token in (renamed, theirs.device.token, mine.device.token):
            sent = Sent({"subject": named(subject), "proof": token})
            own = subject is mine.device and token == mine.device.token
            assert (await world.call(mine.keys["publishable"], operations.STATE, sent)).status == (200 if own else 403)


async def test_one_tenants_calls_use_up_nothing_of_anothers(world: World) -> None:
    mine, theirs = world.tenants["heron"], world.tenants["kestrel"]
    made = {}
    for tenant in (mine, theirs):
        slow = auth.Credential(tenant.log_id, "slow", "service", "slow", frozenset({"check"}), frozenset(), 1)
        async with db.connection(world.made.pool, tenant.log_id) as connection:
            made[tenant.word] = await keys.add_key(connection, world.made.ledgers._secret, slow)
    sent = Sent({"checks": []})
    heard = await asyncio.gather(*(world.call(made["heron"], operations.CHECKS, sent) for _ in range(9)))
    assert 429 in {answer.status for answer in heard}
    assert (await world.call(made["kestrel"], operations.CHECKS, sent)).status == 200


# -- who may change what is answered about somebody -------------------------------------------------------------------


@dataclass
class Victim:
    """Somebody about whom a tenant knows something, and a stranger beside."""

    me: Tenant
    name: str
    device: Device
    stranger: Device
    """Of Eve, who has a log-in and this device, and nothing else."""
    nonce: str
    """Of a challenge for Eve's device."""
    links: dict[str, str] = field(default_factory=dict)
    receipt: str = ""

    def by(self, namespace: str) -> dict[str, str]:
        return {"type": namespace, "id": f"{namespace} of {self.name}"}

    @property
    def login(self) -> dict[str, str]:
        return {"type": "login", "id": f"{LOGIN}|{self.name}"}

    @property
    def child(self) -> dict[str, str]:
        return {"type": "login", "id": f"child of {self.name}"}

    @property
    def eve(self) -> dict[str, str]:
        return {"type": "login", "id": f"{LOGIN}|eve of {self.name}"}

    @property
    def everyone(self) -> list[dict[str, str]]:
        others = [self.by(namespace) for namespace in ("phone", "email", "asset", "household")]
        return [named(self.device), self.login, self.child, *others]

    @property
    def token(self) -> str:
        return access(self.me.word, sub=self.name, jti=self.name)


async def appear(world: World, me: Tenant) -> Victim:
    devices = world.made.devices
    stranger = devices.mint(me.log_id)
    nonce, _ = world.made.linker._challenges.give(me.log_id, stranger.subject)
    v = Victim(me, uuid.uuid4().hex, devices.mint(me.log_id), stranger, nonce)

    async def link(name: str, identifier: dict[str, str], **more: Any) -> None:
        sent = Sent({"identifier": identifier, "evidence": {"seen": "papers"}, **more})
        v.links[name] = (await do(world, me, "service", operations.LINK, sent))["link"]

    for subject in (v.login, v.by("phone"), v.by("email"), v.by("asset"), v.by("household")):
        contact = said("marketing.email", "given", "email", contact=f"{v.name}@shop.example")
        sent = Sent(act(uuid.uuid4().hex, subject, said("personalisation", "refused"), contact))
        await do(world, me, "service", operations.RECORD, sent)
    for device in (v.device, stranger):
        sent = Sent(act(uuid.uuid4().hex, named(device), said("analytics", "given"), proof=device.token))
        await do(world, me, "publishable", operations.RECORD, sent)
    await link("device", named(v.device), proof=v.device.token, login=v.login)
    await link("phone", v.by("phone"), login=v.login)
    await link("asset", v.by("asset"), login=v.login)
    await link("group", v.login, group=v.by("household"))
    await link("guardian", v.child, guardian=v.login, age_out=AGE_OUT)
    sent = Sent(act(uuid.uuid4().hex, v.child, said("profiling", "given"), guardian=v.login))
    v.receipt = (await do(world, me, "service", operations.RECORD, sent))["receipt"]
    return v


async def view(world: World, v: Victim, policy: Policy) -> dict[str, str]:
    """All that is answered about somebody."""
    checks = [
        {"subject": subject, "purpose": purpose.id, "channel": channel, "explain": subject == v.login}
        for subject in v.everyone
        for purpose in policy.purposes.values()
        for channel in purpose.channels
    ]
    asked = [("checks", "service", operations.CHECKS, {"checks": checks})]
    asked += [
        (f"{operation.id} of {subject['type']} {n}", "dpo", operation, {"subject": subject})
        for n, subject in enumerate(v.everyone)
        for operation in (operations.STATE, operations.HISTORY, operations.LINKS)
    ]
    asked += [("conflicts", "dpo", operations.CONFLICTS, {"subject": v.login})]
    found = {}
    for name, caller, operation, body in asked:
        answer = await world.call(v.me.keys[caller], operation, Sent(body))
        assert answer.status == 200, answer
        body_told = ordered(answer.json()) if operation is not operations.CHECKS else answer.json()
        found[name] = re.sub(r'"(rev|as_of)":"[^"]*"', "", msgspec.json.encode(body_told).decode())
    world.made.callers._known.clear()
    own = Sent({"subject": v.login, "purpose": "analytics", "channel": "web"})
    found["token"] = str((await world.call(v.token, operations.CHECK, own)).status)
    return found


class Means(NamedTuple):
    """What somebody has beside a credential."""

    proof: str | None
    """Of the victim's device."""
    id_tokens: list[str]
    """That the victim has logged in on Eve's device."""
    logouts: list[str]


def genuine(v: Victim) -> Means:
    word, events = v.me.word, {verify.LOGOUT: {}}
    return Means(
        v.device.token,
        [signed("JWT", LOGIN, f"shop-{word}", sub=v.name, nonce=v.nonce)],
        [signed("logout+jwt", LOGIN, f"shop-{word}", sub=v.name, jti=uuid.uuid4().hex, events=events)],
    )


def forged(v: Victim, proof: str | None) -> Means:
    """Tokens as anybody can make them, or has from elsewhere."""
    word, past = v.me.word, int(time.time()) - 4_000
    shop, elsewhere, events = f"shop-{word}", f"shop-{WORDS[1]}", {verify.LOGOUT: {}}
    login: dict[str, Any] = {"sub": v.name, "nonce": v.nonce}
    logout: dict[str, Any] = {"sub": v.name, "jti": uuid.uuid4().hex, "events": events}
    return Means(
        proof,
        [
            signed("JWT", LOGIN, shop, key=None, **login),
            signed("JWT", LOGIN, shop, key=STRANGE, **login),
            signed("JWT", LOGIN, elsewhere, **login),
            signed("JWT", LOGIN, shop, sub=v.name, nonce="x" * 50),
            signed("JWT", LOGIN, shop, **login, iat=past, exp=past + 600),
            signed("JWT", MACHINES, shop, **login),
            access(word, **login),
        ],
        [
            signed("logout+jwt", LOGIN, shop, key=None, **logout),
            signed("logout+jwt", LOGIN, shop, key=STRANGE, **logout),
            signed("logout+jwt", LOGIN, elsewhere, **logout),
            signed("logout+jwt", LOGIN, shop, **logout, nonce="x"),
            signed("JWT", LOGIN, shop, **logout),
        ],
    )


def attacks(v: Victim, means: Means) -> dict[str, list[Sent]]:
    """What would change something about the victim, by operation."""
    return {**saying(v, means.proof), **asking(v, means.proof), **tying(v, means), **ending(v, means)}


def saying(v: Victim, proof: str | None) -> dict[str, list[Sent]]:
    def fresh(subject: dict[str, str], *records: dict[str, Any], **more: Any) -> dict[str, Any]:
        return act(uuid.uuid4().hex, subject, *records, proof=proof, **more)

    no, yes = said("*", "withdrawn", None), said("personalisation", "given")
    twice = msgspec.json.encode({"subject": named(v.device), "proof": v.stranger.token, "records": [no]})
    twice = b'{"subject":' + msgspec.json.encode(named(v.stranger)) + b"," + twice[1:]
    return {
        "recordConsents": [
            *(Sent(fresh(subject, record)) for subject in v.everyone for record in (no, yes)),
            *(
                Sent({"subject": subject, "proof": proof, "records": [said("*", "objected", None), {"purpose": 7}]})
                for subject in (named(v.device), v.login)
            ),
            Sent(fresh(v.child, said("profiling", "withdrawn"), guardian=v.login)),
            Sent(fresh(v.login, said("marketing.email", "restricted", None))),
            Sent(twice),
        ],
        "mintDevice": [Sent({**v.me.visit, "id": str(uuid.uuid4())})],
    }


def asking(v: Victim, proof: str | None) -> dict[str, list[Sent]]:
    about = [{"subject": subject, "proof": proof} for subject in v.everyone]
    check = [{**one, "purpose": "analytics", "channel": "web"} for one in about]
    who = [Sent({"subject": subject}) for subject in v.everyone[:2]]
    return {
        "showReceipt": [Sent({"receipt": v.receipt, "format": form}) for form in ("text", "html", "json")],
        "check": [*map(Sent, check[:2])],
        "checkMany": [Sent({"checks": check})],
        "readState": [*map(Sent, about[:2])],
        "readHistory": who,
        "readLinks": who,
        "readConflicts": [*who, Sent({})],
        "challengeLink": [Sent({"identifier": one["subject"], "proof": proof}) for one in about],
        "orderExport": who,
    }


def tying(v: Victim, means: Means) -> dict[str, list[Sent]]:
    device = {"identifier": named(v.device), "proof": means.proof}
    strange = {"identifier": named(v.stranger), "proof": v.stranger.token}
    papers = {"seen": "papers"}
    return {
        "link": [
            *(Sent({**strange, "id_token": token}) for token in means.id_tokens),
            Sent({"identifier": {"type": "loyalty", "id": f"eve's of {v.name}"}, "login": v.login}),
            *(Sent({"identifier": v.by(one), "login": v.eve, "replace": True}) for one in ("phone", "email", "asset")),
            Sent({**device, "login": v.eve, "replace": True}),
            Sent({"identifier": v.login, "group": {"type": "household", "id": f"eve's of {v.name}"}}),
            Sent({"identifier": v.login, "guardian": v.eve, "age_out": AGE_OUT, "evidence": papers}),
            Sent({"identifier": v.child, "guardian": v.eve, "age_out": AGE_OUT, "evidence": papers}),
        ]
    }


def ending(v: Victim, means: Means) -> dict[str, list[Sent]]:
    return {
        "endLink": [Sent({"proof": means.proof}, link) for link in v.links.values()],
        "annulLink": [Sent({"reason": "it suits me"}, link) for link in v.links.values()],
        "eraseSubject": [Sent({"subject": v.by("email"), "dry_run": False})],
        "revokeToken": [Sent({"issuer": LOGIN, "jti": v.name})],
        "backChannelLogout": [Sent(f"logout_token={token}".encode()) for token in means.logouts],
    }


class Foe(NamedTuple):
    """Against whom, and what an attacker may have at hand."""

    v: Victim
    elsewhere: Tenant
    revoked: str


def altered(token: str) -> str:
    return token[:-10] + ("A" if token[-10] != "A" else "B") + token[-9:]


def twin(foe: Foe) -> str:
    """A genuine token of another tenant, with this tenant's device in it."""
    return foe.v.device.token[:-43] + foe.elsewhere.device.token[-43:]


def renumbered(key: str, log_id: object) -> str:
    prefix, _, rest = key.split("_", 2)
    return f"{prefix}_{log_id}_{rest}"


PROOFS: dict[str, Callable[[Foe], str | None]] = {
    "nothing": lambda _: None,
    "an empty proof": lambda _: "",
    "another device's proof": lambda foe: foe.v.stranger.token,
    "a truncated proof": lambda foe: foe.v.device.token[:-1],
    "a longer proof": lambda foe: foe.v.device.token + "A",
    "an altered proof": lambda foe: altered(foe.v.device.token),
    "a re-cased proof": lambda foe: foe.v.device.token[:-43] + foe.v.device.token[-43:].swapcase(),
    "the name without a proof": lambda foe: foe.v.device.token[:-44],
    "the identifier as a proof": lambda foe: foe.v.device.subject.id,
    "a proof of another tenant's device": lambda foe: foe.elsewhere.device.token,
    "a proof of another tenant's device, renamed": twin,
}
"""What stands for a proof of the victim's device."""
OTHERS: dict[str, Callable[[Foe], str | None]] = {
    "nobody": lambda _: None,
    "malformed": lambda foe: foe.v.me.keys["service"][:-1],
    "a device's token": lambda foe: foe.v.device.token,
    "an unknown id": lambda foe: foe.v.me.keys["service"].replace("service", "nobody"),
    "an unknown secret": lambda foe: foe.v.me.keys["service"][:-43] + foe.v.me.keys["weak"][-43:],
    "another kind": lambda foe: "ok" + foe.v.me.keys["service"][2:],
    "revoked": lambda foe: foe.revoked,
    "another tenant's": lambda foe: foe.elsewhere.keys["service"],
    "another tenant's, renumbered": lambda foe: renumbered(foe.elsewhere.keys["service"], foe.v.me.log_id),
    "another tenant's officer": lambda foe: foe.elsewhere.keys["admin"],
    "another tenant's machine": lambda foe: foe.elsewhere.keys["machine"],
    "another tenant's person": lambda foe: access(foe.elsewhere.word, sub=foe.v.name),
    "weak": lambda foe: foe.v.me.keys["weak"],
    "reader": lambda foe: foe.v.me.keys["reader"],
    "linker": lambda foe: foe.v.me.keys["linker"],
    "dpo": lambda foe: foe.v.me.keys["dpo"],
    "admin": lambda foe: foe.v.me.keys["admin"],
    "a machine that may read": lambda foe: access(foe.v.me.word, MACHINES, scope="check state write:attestedlinks"),
    "expired": lambda foe: access(foe.v.me.word, sub=foe.v.name, iat=1_700_000_000, exp=1_700_000_600),
    "unsigned": lambda foe: access(foe.v.me.word, sub=foe.v.name, key=None),
    "signed by somebody else": lambda foe: access(foe.v.me.word, MACHINES, scope="write:attested", key=STRANGE),
    "an ID token": lambda foe: genuine(foe.v).id_tokens[0],
}
"""With the genuine proof of the victim's device, which is of no use without a key for it."""
MAY: dict[str, dict[str, str]] = {
    "linker": {"endLink": "checks|readState|readLinks"},
    "dpo": {"annulLink": "readLinks", "eraseSubject": "checks|readState|readHistory", "revokeToken": "token"},
    "admin": {"annulLink": "readLinks", "eraseSubject": "checks|readState|readHistory", "revokeToken": "token"},
}
"""What a credential is for, by operation: what is answered otherwise afterwards. One officer asks for an annulment."""


@pytest.fixture(scope="module")
async def revoked(world: World) -> str:
    """A key that could do everything."""
    log_id = world.tenants["heron"].log_id
    async with db.connection(world.made.pool, log_id) as connection:
        gone = auth.Credential(log_id, "gone", "service", "gone", frozenset(auth.SCOPES), frozenset(), None)
        key = await keys.add_key(connection, world.made.ledgers._secret, gone)
        await keys.revoke(connection, world.made.ledgers._secret, log_id, "gone")
    return key


class Scene(NamedTuple):
    """A victim and what is answered about it; the next attack finds the same if nothing was changed."""

    v: Victim
    told: dict[str, str]


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return []


@pytest.fixture
async def scene(world: World, demo_policy: Policy, scenes: list[Scene]) -> Scene:
    if not scenes:
        v = await appear(world, world.tenants["heron"])
        scenes.append(Scene(v, await view(world, v, demo_policy)))
    return scenes[-1]


async def attack(
    world: World, policy: Policy, scenes: list[Scene], bearer: str | None, means: Means
) -> dict[str, set[str]]:
    """What is answered otherwise afterwards, by operation."""
    v, before = scenes.pop()
    mine, sending = f"log_id = {v.me.log_id}", attacks(v, means)
    changed: dict[str, set[str]] = {}
    rows = await world.rows(mine)
    for operation in [one for one in operations.ALL if one.method != "GET"]:
        for sent in sending[operation.id]:
            await world.call(bearer, operation, sent)
            if await world.rows(mine) != rows:
                after, rows = await view(world, v, policy), await world.rows(mine)
                differs = {name.partition(" ")[0] for name in before if before[name] != after[name]}
                changed |= {operation.id: changed.get(operation.id, set()) | differs} if differs else {}
                before = after
    assert await view(world, v, policy) == before, "nothing changes but by what is written"
    if not changed:
        scenes.append(Scene(v, before))
    return changed


@pytest.mark.parametrize("name", OTHERS)
async def test_a_wrong_credential_changes_nothing(
    world: World, demo_policy: Policy, scene: Scene, scenes: list[Scene], revoked: str, name: str
) -> None:
    foe = Foe(scene.v, world.tenants["kestrel"], revoked)
    means = forged(foe.v, foe.v.device.token)
    changed = await attack(world, demo_policy, scenes, OTHERS[name](foe), means)
    assert changed == {operation: set(what.split("|")) for operation, what in MAY.get(name, {}).items()}


@pytest.mark.parametrize("name", PROOFS)
async def test_a_wrong_proof_changes_nothing(
    world: World, demo_policy: Policy, scene: Scene, scenes: list[Scene], name: str
) -> None:
    """With the publishable key, which everybody can see."""
    foe = Foe(scene.v, world.tenants["kestrel"], "")
    means = forged(foe.v, PROOFS[name](foe))
    assert await attack(world, demo_policy, scenes, foe.v.me.keys["publishable"], means) == {}


@pytest.mark.parametrize("name", ["nothing", "another device's proof", "an altered proof"])
async def test_somebody_elses_log_in_changes_nothing(
    world: World, demo_policy: Policy, scene: Scene, scenes: list[Scene], name: str
) -> None:
    foe = Foe(scene.v, world.tenants["kestrel"], "")
    eve = access(foe.v.me.word, sub=f"eve of {foe.v.name}")
    assert await attack(world, demo_policy, scenes, eve, forged(foe.v, PROOFS[name](foe))) == {}


RIGHT = {"mintDevice": "publishable", "annulLink": "dpo", "eraseSubject": "dpo", "revokeToken": "admin",
         "backChannelLogout": "nobody", "orderExport": "dpo",
         "readState": "dpo", "readHistory": "dpo", "readLinks": "dpo", "readConflicts": "dpo"}  # fmt: skip
"""Who may call what; else the service."""
CHANGING = ("recordConsents", "link", "endLink", "annulLink", "eraseSubject", "revokeToken", "backChannelLogout")


@pytest.mark.parametrize("operation", [one for one in operations.ALL if one.method != "GET"], ids=lambda one: one.id)
async def test_control_the_right_credential_changes_something(
    world: World, demo_policy: Policy, operation: Operation
) -> None:
    """Every call that was tried above, on each of its own."""
    v = await appear(world, world.tenants["heron"])
    before = await view(world, v, demo_policy)
    for n, sent in enumerate(attacks(v, genuine(v))[operation.id]):
        answer = await world.call(v.me.keys.get(RIGHT.get(operation.id, "service")), operation, sent)
        if operation.id in CHANGING:
            after = await view(world, v, demo_policy)
            assert after != before, (n, answer)
            before = after
        elif operation is operations.CHALLENGE:
            assert answer.status == 200, (n, answer)
        else:
            assert answer.status in (200, 201), (n, answer)


def test_every_changing_operation_is_attacked() -> None:
    minting = Devices(b"some secret")
    me = Tenant("heron", 1, {}, minting.mint(1), minting.mint(1))
    v = Victim(me, "ada", minting.mint(1), minting.mint(1), "nonce", {"device": "link"})
    sending = attacks(v, genuine(v))
    assert sending.keys() == {one.id for one in operations.ALL if one.method != "GET"}
    assert all(sending.values())
