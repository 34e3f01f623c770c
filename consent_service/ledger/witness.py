"""Asking witnesses to cosign a checkpoint (c2sp.org/tlog-witness): each sees for itself that the tree only grew.

What a witness does is told, never raised: one that is dead, slow or false costs its own signature and no other.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

import httpx

from consent_service import clock, outbound
from consent_service.errors import SetupError
from consent_service.ledger.note import (
    MAX_SIGNATURES,
    Checkpoint,
    NoteError,
    Verifier,
    base64_text,
    split,
    take_apart,
)
from consent_service.ledger.trust import MAX_TRUST, Trust

ASK_S = 3.0
"""Seconds for a call to a witness; it gets two at most, the second after it has said how far it knows the log."""
MAX_BODY = 16_384
"""Bytes of a witness's answer."""
MAX_WITNESSES = 32
"""Witnesses that are asked: a note has room for twice as many signatures."""
SKEW_S = 300
"""Seconds by which the clock of a witness may differ from ours."""
_SIZE_TYPE = "text/x.tlog.size"
_SIZE = re.compile(rb"(0|[1-9][0-9]{0,18})\n")
_HEADERS = {"Content-Type": "text/plain; charset=utf-8"}

Prove: TypeAlias = Callable[[int, int], Awaitable[Sequence[bytes]]]
"""Gives the consistency proof between the trees of two sizes, the smaller first (RFC 6962, section 2.1.2)."""
What = Literal["cosigned", "ahead", "refused", "lied", "unreachable"]


class Told(NamedTuple):
    """What a witness did."""

    witness: str
    """Its name in the file."""
    what: What
    """`ahead`: it has cosigned a larger tree of this log than ours. `lied`: it answered, but not as the protocol says,
    or without a fresh signature of its own over this checkpoint."""
    status: int | None = None
    """Of its last answer (HTTP); None: there was none that could be read."""
    size: int | None = None
    """Of one that is ahead: how large that tree is."""
    dropped: int = 0
    """Lines that came with its signature and were left out: wrong, stale, or not its own."""


class Cosigned(NamedTuple):
    """A checkpoint after the witnesses were asked."""

    note: str
    """With the signatures that hold, in the order of the file."""
    told: tuple[Told, ...]
    """Of each witness, in the order of the file."""


class _Witness(NamedTuple):
    name: str
    key: Verifier
    url: str


class Witnesses:
    """Those of a policy file that have an address."""

    def __init__(self, trust: Trust, http: httpx.AsyncClient) -> None:
        self._http = http
        self._witnesses = _asked(trust)
        self._sizes: dict[tuple[str, Verifier], int] = {}
        """Up to where each has cosigned each log. A guess: a witness that knows better says so."""

    async def cosign(self, note: str, prove: Prove) -> Cosigned:
        """Ask all of them at once about the checkpoint that a log signed.

        Raises:
            NoteError: the note is no checkpoint.
            Exception: whatever `prove` raises, after everybody was asked.
        """
        text, lines = split(note)
        checkpoint = Checkpoint.parse(text)
        answers = await asyncio.gather(
            *(self._ask(witness, note, checkpoint, prove) for witness in self._witnesses), return_exceptions=True
        )
        told, found = list[Told](), dict[Verifier, str]()
        for witness, answer in zip(self._witnesses, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            heard, line = _judged(witness, text, checkpoint.size, answer)
            told.append(heard)
            if line is not None:
                found[witness.key] = line
                self._sizes[checkpoint.origin, witness.key] = checkpoint.size
        return Cosigned(_merged(text, lines, found), tuple(told))

    async def _ask(
        self, witness: _Witness, note: str, checkpoint: Checkpoint, prove: Prove
    ) -> outbound.Answer | Literal["lied", "unreachable"]:
        known = self._sizes.get((checkpoint.origin, witness.key), 0)
        old = known if known <= checkpoint.size else 0
        answer = await self._submit(witness, note, old, checkpoint.size, prove)
        stated = _stated(answer)
        if stated is not None and stated != old and stated <= checkpoint.size:
            answer = await self._submit(witness, note, stated, checkpoint.size, prove)
        return answer

    async def _submit(
        self, witness: _Witness, note: str, old: int, size: int, prove: Prove
    ) -> outbound.Answer | Literal["lied", "unreachable"]:
        proof = await prove(old, size) if 0 < old < size else ()
        body = "".join((f"old {old}\n", *(f"{base64_text(one)}\n" for one in proof), "\n", note))
        url = f"{witness.url.rstrip('/')}/add-checkpoint"
        try:
            return await outbound.ask(
                self._http, "POST", url, headers=_HEADERS, content=body.encode(), seconds=ASK_S, limit=MAX_BODY
            )
        except (httpx.HTTPError, TimeoutError):
            return "unreachable"
        except ValueError:
            return "lied"


@asynccontextmanager
async def asking(trust: Trust) -> AsyncIterator[Witnesses]:
    """Connections to the witnesses of a file, kept open from one checkpoint to the next."""
    async with await outbound.client() as http:
        yield Witnesses(trust, http)


def load(file: Path) -> Trust:
    """The policy file whose witnesses are to be asked.

    Raises:
        SetupError: it cannot be read, or the address of a witness may not be asked.
    """
    try:
        with file.open(encoding="utf-8") as opened:
            trust = Trust.parse(opened.read(MAX_TRUST + 1))
    except (OSError, UnicodeDecodeError, NoteError) as error:
        raise SetupError(f"The file of witnesses {file} cannot be used: {error}.") from None
    witnesses = _asked(trust)
    if not 0 < len(witnesses) <= MAX_WITNESSES:
        raise SetupError(f"{file} has {len(witnesses)} witnesses with an address; 1 to {MAX_WITNESSES} can be asked.")
    for witness in witnesses:
        try:
            outbound.demand_safe(witness.url)
        except ValueError as error:
            raise SetupError(f"The witness `{witness.name}` in {file} cannot be asked: {error}.") from None
    return trust


def _asked(trust: Trust) -> list[_Witness]:
    return [_Witness(name, key, trust.urls[key]) for name, key in trust.witnesses.items() if key in trust.urls]


def _stated(answer: outbound.Answer | str) -> int | None:
    """The size up to which a witness says it has cosigned, where it says so."""
    if isinstance(answer, str) or answer.status != httpx.codes.CONFLICT or answer.kind != _SIZE_TYPE:
        return None
    match = _SIZE.fullmatch(answer.body)
    return None if match is None else int(match[1])


def _judged(
    witness: _Witness, text: str, size: int, answer: outbound.Answer | Literal["lied", "unreachable"]
) -> tuple[Told, str | None]:
    """What a witness did, and its signature line if it holds."""
    if isinstance(answer, str):
        return Told(witness.name, answer), None
    if answer.status == httpx.codes.OK:
        line, dropped = _own(witness.key, text, answer.body)
        return Told(witness.name, "lied" if line is None else "cosigned", answer.status, None, dropped), line
    stated = _stated(answer)
    if stated is not None and stated > size:
        return Told(witness.name, "ahead", answer.status, stated), None
    return Told(witness.name, "refused", answer.status), None


def _own(key: Verifier, text: str, body: bytes) -> tuple[str | None, int]:
    """The first line that is this key's fresh signature, and how many others there are."""
    lines = body.decode(errors="replace").removesuffix("\n").split("\n")
    now = clock.now().timestamp()
    for line in lines[:MAX_SIGNATURES]:
        try:
            name, known, signature = take_apart(line)
        except NoteError:
            continue
        signed = key.verifies(text, signature) if (name, known) == (key.name, key.id) else None
        if signed is not None and signed.at is not None and abs(signed.at - now) <= SKEW_S:
            return line, len(lines) - 1
    return None, len(lines)


def _merged(text: str, lines: Iterable[str], found: Mapping[Verifier, str]) -> str:
    """The note with the lines that were found, in the place of older ones by the same keys."""
    keys = {(key.name, key.id) for key in found}
    kept = [line for line in lines if take_apart(line)[:2] not in keys]
    return text + "\n" + "".join(f"{line}\n" for line in (*kept, *found.values()))
