"""Witnesses over HTTP: real ones in small, that verify what the protocol says, and ones that do not keep to it."""

from __future__ import annotations

import asyncio
import functools
import itertools
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Serve
from hypothesis import given, settings
from hypothesis import strategies as some

from consent_service.errors import SetupError
from consent_service.ledger import note, tree, witness
from consent_service.ledger.note import WITNESS, Checkpoint, NoteError, Signer, Verifier
from consent_service.ledger.tree import EMPTY, Frontier, grew, leaf_hash
from consent_service.ledger.trust import Trust
from consent_service.ledger.witness import Told, Witnesses, asking

SIGNERS = [Signer(f"witness-{n}.example/w", bytes([n]) * 32, WITNESS) for n in range(4)]
STRANGER = Signer("stranger.example/w", b"s" * 32, WITNESS)
_COUNT = itertools.count()
T0 = 1_000_000_000


class Log:
    """A log that grows. It can also become another one from a leaf on, which no log may."""

    def __init__(self, name: str | None = None) -> None:
        self.signer = Signer(name or f"log-{next(_COUNT)}.example/l", os.urandom(32))
        self.leaves: list[bytes] = []
        self.proved: list[tuple[int, int]] = []

    def grow(self, count: int, kind: bytes = b"leaf") -> None:
        self.leaves += [leaf_hash(b"%s %d" % (kind, len(self.leaves) + n)) for n in range(count)]
        self._node = functools.cache(self._hash)

    def _hash(self, level: int, place: int) -> bytes:
        assert (place + 1) << level <= len(self.leaves)
        if level == 0:
            return self.leaves[place]
        return tree.node_hash(self._node(level - 1, place * 2), self._node(level - 1, place * 2 + 1))

    @property
    def checkpoint(self) -> Checkpoint:
        root = Frontier().grown(self.leaves).root if self.leaves else EMPTY
        return Checkpoint(self.signer.verifier.name, len(self.leaves), root)

    @property
    def note(self) -> str:
        return note.sign(str(self.checkpoint), [self.signer])

    async def prove(self, old: int, new: int) -> list[bytes]:
        self.proved.append((old, new))
        return tree.consistency_proof(old, new, self._node)


class Reply(NamedTuple):
    status: int
    body: bytes = b""
    kind: bytes = b"text/plain"


Manner = Callable[["World", "Server", Reply, str], Reply | None]
"""What a server makes of the reply that it owes for a note; None: it says nothing."""


class Server:
    """One witness (c2sp.org/tlog-witness), and how it behaves."""

    def __init__(self, signer: Signer) -> None:
        self.signer = signer
        self.seen: dict[str, Checkpoint] = {}
        self.manner: Manner | None = None
        self.asked = 0

    def answer(self, logs: dict[str, Verifier], body: str) -> Reply:  # noqa: PLR0911 -- one for each rule, in order
        head, _, signed = body.partition("\n\n")
        old_line, *lines = head.split("\n")
        text, _ = note.split(signed)
        sent = Checkpoint.parse(text)
        word, old = old_line.split(" ")
        if word != "old" or str(int(old)) != old or len(lines) > 63:
            return Reply(400)
        if sent.origin not in logs:
            return Reply(404)
        try:
            note.read(signed, [logs[sent.origin]])
        except NoteError:
            return Reply(403)
        known = self.seen.get(sent.origin, Checkpoint(sent.origin, 0, EMPTY))
        if int(old) > sent.size:
            return Reply(400)
        if int(old) != known.size or (known.size == sent.size and known.root != sent.root):
            return Reply(409, b"%d\n" % known.size, b"text/x.tlog.size")
        proof = [note.unbase64(line) or b"" for line in lines]
        if not grew(known.size, known.root, sent.size, sent.root, proof):
            return Reply(422)
        self.seen[sent.origin] = sent
        return Reply(200, self.signer.line(text, int(time.time())).encode())


class World:
    """Four witnesses behind one address, and the logs that they know."""

    def __init__(self) -> None:
        self.servers = [Server(signer) for signer in SIGNERS]
        self.logs: dict[str, Verifier] = {}
        self.url = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        server = self.servers[int(scope["path"].split("/")[1])]
        server.asked += 1
        assert (scope["method"], scope["path"].split("/")[2:]) == ("POST", ["add-checkpoint"])
        assert b"cookie" not in dict(scope["headers"])
        body, more = b"", True
        while more:
            event = await receive()
            body, more = body + event.get("body", b""), event.get("more_body", False)
        reply: Reply | None = server.answer(self.logs, body.decode())
        if server.manner is not None and reply is not None:
            reply = server.manner(self, server, reply, body.decode().partition("\n\n")[2])
        if reply is None:
            while (await receive())["type"] != "http.disconnect":
                pass
            return
        headers = [(b"content-type", reply.kind), (b"location", self.url.encode() + b"/3/add-checkpoint"),
                   (b"set-cookie", b"seen=1")]  # fmt: skip
        if reply.kind == b"gzip":
            headers.append((b"content-encoding", b"gzip"))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    def trust(self, *logs: Log, quorum: str = "all 0 1 2 3", asked: int = 4) -> Trust:
        lines = [f"log {log.signer.verifier}" for log in logs]
        for n, server in enumerate(self.servers):
            lines.append(f"witness {n} {server.signer.verifier} {f'{self.url}/{n}/' if n < asked else ''}")
        return Trust.parse("\n".join([*lines, f"group g {quorum}", "quorum g"]))

    def log(self, size: int = 0) -> Log:
        log = Log()
        log.grow(size)
        self.logs[log.signer.verifier.name] = log.signer.verifier
        return log


@pytest.fixture(scope="session")
async def served(serve: Serve) -> AsyncIterator[World]:
    made = World()
    async with serve(made) as made.url:
        yield made


@pytest.fixture
def world(served: World) -> World:
    for server in served.servers:
        server.manner, server.asked = None, 0
        server.seen.clear()
    return served


def whats(told: tuple[Told, ...]) -> list[str]:
    return [one.what for one in told]


def passes(trust: Trust, signed: str) -> bool:
    read = note.read(signed, trust.known)
    try:
        trust.demand(Checkpoint.parse(read.text), read)
    except NoteError:
        return False
    return True


async def test_all_cosign_and_the_note_holds(world: World) -> None:
    log = world.log(5)
    trust = world.trust(log)
    async with asking(trust) as witnesses:
        done = await witnesses.cosign(log.note, log.prove)
    assert done.told == tuple(Told(str(n), "cosigned", 200) for n in range(4))
    assert passes(trust, done.note)
    assert not passes(trust, log.note)
    by = [signed.by for signed in note.read(done.note, trust.known).signatures]
    assert by == [log.signer.verifier, *(signer.verifier for signer in SIGNERS)]


async def test_what_a_witness_knows_is_remembered_and_after_a_restart_asked_for(world: World) -> None:
    log = world.log(5)
    trust = world.trust(log, quorum="any 0", asked=1)
    async with asking(trust) as witnesses:
        for size in (0, 3, 200):
            log.grow(size)
            assert whats((await witnesses.cosign(log.note, log.prove)).told) == ["cosigned"]
    assert (world.servers[0].asked, log.proved) == (3, [(5, 8), (8, 208)])
    async with asking(trust) as witnesses:
        assert passes(trust, (await witnesses.cosign(log.note, log.prove)).note)
        assert world.servers[0].asked == 5, "it does not know us, and then it does"
        world.servers[0].seen.clear()
        assert passes(trust, (await witnesses.cosign(log.note, log.prove)).note)


async def test_asked_again_about_the_same_checkpoint_it_signs_once(world: World) -> None:
    log = world.log(5)
    trust = world.trust(log)
    async with asking(trust) as witnesses:
        world.servers[2].manner = says(b"", status=503)
        first = await witnesses.cosign(log.note, log.prove)
        world.servers[2].manner = None
        second = await witnesses.cosign(first.note, log.prove)
    assert whats(first.told) == ["cosigned", "cosigned", "refused", "cosigned"]
    assert (first.note.count("\n— "), second.note.count("\n— ")) == (4, 5)
    assert passes(trust, second.note)


async def test_two_logs_are_told_apart_by_their_first_line(world: World) -> None:
    one, other, unknown = world.log(5), world.log(9), Log("nobody.example/l")
    unknown.grow(3)
    async with asking(world.trust(one, other, unknown)) as witnesses:
        assert passes(world.trust(one), (await witnesses.cosign(one.note, one.prove)).note)
        assert passes(world.trust(other), (await witnesses.cosign(other.note, other.prove)).note)
        done = await witnesses.cosign(unknown.note, unknown.prove)
    assert done.told == tuple(Told(str(n), "refused", 404) for n in range(4))
    assert done.note == unknown.note


async def test_witnesses_without_an_address_are_not_asked(world: World) -> None:
    log = world.log(5)
    async with asking(world.trust(log, asked=2)) as witnesses:
        assert whats((await witnesses.cosign(log.note, log.prove)).told) == ["cosigned", "cosigned"]
    assert [server.asked for server in world.servers] == [1, 1, 0, 0]


async def test_a_log_that_went_back_or_split_is_told(world: World) -> None:
    log = world.log(9)
    async with asking(world.trust(log)) as witnesses:
        await witnesses.cosign(log.note, log.prove)
        del log.leaves[6:]
        log.grow(0)
        back = await witnesses.cosign(log.note, log.prove)
        log.grow(3, b"other")
        same = await witnesses.cosign(log.note, log.prove)
        log.grow(3, b"other")
        split = await witnesses.cosign(log.note, log.prove)
    assert back.told == tuple(Told(str(n), "ahead", 409, 9) for n in range(4))
    assert same.told == tuple(Told(str(n), "refused", 409) for n in range(4))
    assert split.told == tuple(Told(str(n), "refused", 422) for n in range(4))


# Those that do not keep to it


def says(body: bytes, status: int = 200, kind: bytes = b"text/plain") -> Manner:
    return lambda *_: Reply(status, body, kind)


def signed(by: Signer, *, text: str | None = None, later: int = 0, kind: int = WITNESS) -> Manner:
    """Signs with that key, or other words, or at another time, or as another kind."""

    def manner(_world: World, _server: Server, _owed: Reply, sent: str) -> Reply:
        words = text or note.split(sent)[0]
        signer = by if kind == WITNESS else Signer(by.verifier.name, bytes([1]) * 32)
        return Reply(200, signer.line(words, int(time.time()) + later).encode())

    return manner


def silent(*_: Any) -> None:
    return None


OTHER_TEXT = str(Checkpoint("log.example/other", 5, bytes(32)))
LIARS: dict[str, tuple[Manner, Told]] = {
    "silence": (silent, Told("1", "unreachable")),
    "another checkpoint": (signed(SIGNERS[1], text=OTHER_TEXT), Told("1", "lied", 200, None, 1)),
    "another witness": (signed(SIGNERS[2]), Told("1", "lied", 200, None, 1)),
    "an unknown key": (signed(STRANGER), Told("1", "lied", 200, None, 1)),
    "the type of a log": (signed(SIGNERS[1], kind=1), Told("1", "lied", 200, None, 1)),
    "an old signature": (signed(SIGNERS[1], later=-3_600), Told("1", "lied", 200, None, 1)),
    "one from the future": (signed(SIGNERS[1], later=3_600), Told("1", "lied", 200, None, 1)),
    "its name with another key": (signed(Signer(SIGNERS[1].verifier.name, b"x" * 32, WITNESS)),
                                  Told("1", "lied", 200, None, 1)),
    "nothing": (says(b""), Told("1", "lied", 200, None, 1)),
    "garbage": (says(b"\xff\0\n\n\x80"), Told("1", "lied", 200, None, 3)),
    "no body for a client": (says(b"", 204), Told("1", "refused", 204)),
    "a redirect": (says(b"", 307), Told("1", "refused", 307)),
    "an error": (says(b"no", 500), Told("1", "refused", 500)),
    "an endless body": (says(b"x" * 20_000), Told("1", "lied")),
    "a compressed body": (says(b"", 200, b"gzip"), Told("1", "lied")),
    "a size that grows": (lambda _, server, *__: Reply(409, b"%d\n" % (server.asked % 5), b"text/x.tlog.size"),
                          Told("1", "refused", 409)),
    "a size beyond": (says(b"9223372036854775807\n", 409, b"text/x.tlog.size"), Told("1", "ahead", 409, 2**63 - 1)),
    "a size of another type": (says(b"3\n", 409), Told("1", "refused", 409)),
    "no size": (says(b"03\n", 409, b"text/x.tlog.size"), Told("1", "refused", 409)),
}  # fmt: skip


@pytest.mark.parametrize("name", LIARS)
async def test_one_that_lies_costs_its_own_signature_only(
    world: World, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.servers[1].manner, expected = LIARS[name]
    monkeypatch.setattr(witness, "ASK_S", 0.3 if name == "silence" else witness.ASK_S)
    log = world.log(5)
    most, every = world.trust(log, quorum="3 0 1 2 3"), world.trust(log)
    async with asking(every) as witnesses:
        done = await witnesses.cosign(log.note, log.prove)
        assert done.told == (Told("0", "cosigned", 200), expected, *(Told(str(n), "cosigned", 200) for n in (2, 3)))
        assert passes(most, done.note)
        assert not passes(every, done.note)
        assert done.note.count("\n— ") == 4
        world.servers[1].manner = None
        assert passes(every, (await witnesses.cosign(log.note, log.prove)).note), "it may mend its ways"


async def test_lines_beside_its_own_are_left_out_and_counted(world: World) -> None:
    def chatty(_world: World, server: Server, owed: Reply, sent: str) -> Reply:
        text = note.split(sent)[0]
        stale = server.signer.line(text, T0)
        return Reply(200, (stale + STRANGER.line(text, T0) + SIGNERS[0].line(text, T0)).encode() + owed.body * 2)

    world.servers[3].manner = chatty
    log = world.log(5)
    trust = world.trust(log)
    async with asking(trust) as witnesses:
        done = await witnesses.cosign(log.note, log.prove)
    assert done.told[3] == Told("3", "cosigned", 200, None, 4)
    assert done.note.count("\n— ") == 5
    assert passes(trust, done.note)


async def test_nobody_there_is_told(world: World) -> None:
    log = world.log(5)
    trust = world.trust(log)
    nowhere = Trust.parse(f"witness a {SIGNERS[0].verifier} http://127.0.0.1:9\nquorum a")
    elsewhere = Trust.parse(f"witness a {SIGNERS[0].verifier} http://192.0.2.1\nquorum a")
    for whom, what in ((nowhere, "unreachable"), (elsewhere, "lied")):
        async with asking(whom) as witnesses:
            done = await witnesses.cosign(log.note, log.prove)
        assert (done.note, whats(done.told)) == (log.note, [what])
    assert not passes(trust, log.note)


async def test_the_slow_ones_are_waited_for_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(witness, "ASK_S", 0.3)
    for server in world.servers:
        server.manner = silent
    log = world.log(5)
    waiting = set[int]()

    async def watch() -> None:
        while len(waiting) < 4:
            waiting.update(n for n, server in enumerate(world.servers) if server.asked)
            await asyncio.sleep(0.01)

    async with asking(world.trust(log)) as witnesses, asyncio.TaskGroup() as group:
        group.create_task(watch())
        done = await witnesses.cosign(log.note, log.prove)
        assert len(waiting) == 4, "each was asked before any was given up"
    assert whats(done.told) == ["unreachable"] * 4


async def test_a_proof_that_fails_is_our_own_fault_and_is_raised(world: World) -> None:
    log = world.log(5)

    async def fails(_old: int, _new: int) -> list[bytes]:
        raise LookupError("the database is away")

    async with asking(world.trust(log)) as witnesses:
        await witnesses.cosign(log.note, log.prove)
        log.grow(1)
        with pytest.raises(LookupError):
            await witnesses.cosign(log.note, fails)
        assert whats((await witnesses.cosign(log.note, log.prove)).told) == ["cosigned"] * 4


async def test_what_is_no_checkpoint_is_not_sent(world: World) -> None:
    async with asking(world.trust()) as witnesses:
        for text in ("", "words\n", note.sign("words\n", [SIGNERS[0]])):
            with pytest.raises(NoteError):
                await witnesses.cosign(text, Log().prove)
    assert [server.asked for server in world.servers] == [0] * 4


STEPS = some.one_of(
    some.tuples(some.just("grow"), some.integers(0, 40)),
    some.tuples(some.sampled_from(["forget", "behind", "honest", "lying", "wrong", "error"]), some.integers(0, 3)),
    some.tuples(some.just("restart"), some.just(0)),
)


@settings(deadline=None, max_examples=40)
@given(steps=some.lists(STEPS, min_size=3, max_size=12), needed=some.integers(1, 4))
async def test_it_holds_when_enough_were_honest_and_never_otherwise(
    served: World, steps: list[tuple[str, int]], needed: int
) -> None:
    manners: dict[str, Manner | None] = {
        "honest": None, "lying": signed(STRANGER), "error": says(b"", 500),
        "wrong": signed(SIGNERS[1], text=OTHER_TEXT),
    }  # fmt: skip
    for server in served.servers:
        server.manner = None
        server.seen.clear()
    log = served.log(1)
    trust = served.trust(log, quorum=f"{needed} 0 1 2 3")
    past = [log.checkpoint]
    async with asking(trust) as first:
        witnesses = first
        for step, n in [*steps, ("grow", 1)]:
            server = served.servers[n % 4]
            if step in manners:
                server.manner = manners[step]
            elif step == "forget":
                server.seen.clear()
            elif step == "behind":
                server.seen[log.checkpoint.origin] = past[len(past) // 2]
            elif step == "restart":
                witnesses = Witnesses(trust, first._http)
            else:
                log.grow(n)
                past.append(log.checkpoint)
                done = await witnesses.cosign(log.note, log.prove)
                honest = [one.manner is None for one in served.servers]
                assert [what == "cosigned" for what in whats(done.told)] == honest
                assert passes(trust, done.note) is (sum(honest) >= needed)


# The file


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (["quorum none"], "0 witnesses with an address"),
        (["nonsense"], "line 1 of the policy file"),
        ([f"witness a {SIGNERS[0].verifier} http://witness.example", "quorum a"], "`a`.*by https"),
        ([f"witness a {SIGNERS[0].verifier} https://w.example:x", "quorum a"], "`a`.*no address"),
        ([*(f"witness w{n} {Signer('w', bytes([n]) * 32, WITNESS).verifier} https://w.example" for n in range(33)),
          "quorum none"], "33 witnesses"),
    ],
)  # fmt: skip
def test_a_file_whose_witnesses_cannot_be_asked_is_refused(tmp_path: Path, lines: list[str], said: str) -> None:
    file = tmp_path / "policy"
    file.write_text("\n".join(lines))
    with pytest.raises(SetupError, match=said):
        witness.load(file)


def test_a_file_of_witnesses_is_read(tmp_path: Path) -> None:
    file = tmp_path / "policy"
    with pytest.raises(SetupError, match="cannot be used"):
        witness.load(file)
    file.write_bytes(b"\xff")
    with pytest.raises(SetupError, match="cannot be used"):
        witness.load(file)
    file.write_text(f"witness a {SIGNERS[0].verifier} https://witness.example/a\nquorum a\n")
    assert witness.load(file).urls == {SIGNERS[0].verifier: "https://witness.example/a"}
