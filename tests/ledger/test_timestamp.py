"""Timestamps of a real authority: the one of OpenSSL, behind HTTP, with certificates made here."""

from __future__ import annotations

import asyncio
import datetime as dt
import secrets
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import rfc3161_client
from conftest import Serve
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as some

from consent_service.errors import SetupError
from consent_service.ledger import timestamp
from consent_service.ledger.timestamp import Stamped, StampError, stamp, verify

NOTE = "consent.example/demo\n12\nAAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=\n\n— consent.example/demo AAAAAAAA\n"
DAY = dt.timedelta(days=1)
CONFIG = """
[tsa]
default_tsa = it
[it]
serial = {folder}/serial
digests = {digests}
signer_digest = sha256
default_policy = 1.2.3.4.1
accuracy = secs:1
ess_cert_id_alg = sha256
certs = {folder}/above.pem
"""
Key = ec.EllipticCurvePrivateKey


def certify(
    name: str, key: Key, issuer: str, by: Key, *, purpose: x509.ObjectIdentifier | None, ends: dt.timedelta = DAY
) -> x509.Certificate:
    now = dt.datetime.now(dt.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - 9 * DAY)
        .not_valid_after(now + ends)
        .add_extension(x509.BasicConstraints(ca=purpose is None, path_length=None), critical=True)
    )
    if purpose is not None:
        built = built.add_extension(x509.ExtendedKeyUsage([purpose]), critical=True)
    return built.sign(by, hashes.SHA256())


def pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


def openssl(*arguments: str | Path) -> None:
    done = subprocess.run(["openssl", *arguments], capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr


def der(tag: int, content: bytes) -> bytes:
    length = len(content)
    octets = length.to_bytes((length.bit_length() + 7) // 8, "big")
    return bytes([tag]) + (bytes([length]) if length < 128 else bytes([0x80 | len(octets)]) + octets) + content


class Authority:
    """A time-stamping authority, and how it behaves."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = ec.generate_private_key(ec.SECP256R1())
        self.roots = pem(certify("Root", self.root, "Root", self.root, purpose=None))
        self.above = ec.generate_private_key(ec.SECP256R1())
        (folder / "above.pem").write_bytes(pem(certify("Above", self.above, "Root", self.root, purpose=None)))
        self.url = ""
        (folder / "serial").write_text("01\n")
        (folder / "good.cnf").write_text(CONFIG.format(folder=folder, digests="sha256"))
        (folder / "strict.cnf").write_text(CONFIG.format(folder=folder, digests="sha512"))
        self.add("good", ExtendedKeyUsageOID.TIME_STAMPING)
        self.add("deep", ExtendedKeyUsageOID.TIME_STAMPING, deep=True)
        self.add("expired", ExtendedKeyUsageOID.TIME_STAMPING, ends=-DAY)
        self.add("server", ExtendedKeyUsageOID.SERVER_AUTH)
        self.add("mail", ExtendedKeyUsageOID.EMAIL_PROTECTION)
        self.behave()

    def behave(self, *, signer: str = "good", config: str = "good", query: Any = bytes, reply: Any = bytes) -> None:
        """`query` and `reply` change what goes to OpenSSL and what comes from it."""
        self.signer, self.config, self.query, self.reply = signer, config, query, reply
        self.status, self.kind = 200, b"application/timestamp-reply"

    def add(self, name: str, purpose: x509.ObjectIdentifier, *, ends: dt.timedelta = DAY, deep: bool = False) -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        issuer, by = ("Above", self.above) if deep else ("Root", self.root)
        (self.folder / f"{name}.pem").write_bytes(pem(certify(name, key, issuer, by, purpose=purpose, ends=ends)))
        (self.folder / f"{name}.key").write_bytes(key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ))  # fmt: skip

    def answer(self, query: bytes) -> bytes:
        made = self.folder / secrets.token_hex(8)
        made.mkdir()
        (made / "query").write_bytes(self.query(query))
        signer = self.signer if self.signer in ("good", "deep", "expired") else "good"
        openssl("ts", "-reply", "-queryfile", made / "query", "-out", made / "reply",
                "-config", self.folder / f"{self.config}.cnf", *self._as(signer, "-inkey"))  # fmt: skip
        return self.reply((made / "reply").read_bytes() if signer == self.signer else self._signed_anew(made))

    def _signed_anew(self, made: Path) -> bytes:
        """With a certificate with which OpenSSL's authority would not sign."""
        openssl("ts", "-reply", "-in", made / "reply", "-token_out", "-out", made / "token")
        openssl("cms", "-verify", "-noverify", "-inform", "DER", "-in", made / "token", "-out", made / "info")
        openssl("cms", "-sign", "-binary", "-nodetach", "-cades", "-econtent_type", "1.2.840.113549.1.9.16.1.4",
                "-outform", "DER", "-in", made / "info", "-out", made / "forged",
                *self._as(self.signer, "-inkey"))  # fmt: skip
        return der(0x30, der(0x30, der(2, b"\0")) + (made / "forged").read_bytes())

    def _as(self, signer: str, key: str) -> tuple[str | Path, ...]:
        return ("-signer", self.folder / f"{signer}.pem", key, self.folder / f"{signer}.key")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        assert scope["method"] == "POST"
        assert dict(scope["headers"])[b"content-type"] == b"application/timestamp-query"
        query = (await receive())["body"]
        body = await asyncio.to_thread(self.answer, query)
        await send({"type": "http.response.start", "status": self.status, "headers": [(b"content-type", self.kind)]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="session")
async def served(serve: Serve, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Authority]:
    assert shutil.which("openssl"), "install openssl"
    made = Authority(tmp_path_factory.mktemp("authority"))
    async with serve(made) as made.url:
        yield made


@pytest.fixture
def authority(served: Authority) -> Authority:
    served.behave()
    return served


@pytest.fixture(scope="session")
def token(served: Authority) -> bytes:
    served.behave()
    query = rfc3161_client.TimestampRequestBuilder(NOTE.encode(), rfc3161_client.HashAlgorithm.SHA256).build()
    return served.answer(query.as_bytes())


async def test_a_note_is_stamped_and_the_stamp_holds(authority: Authority) -> None:
    before = dt.datetime.now(dt.UTC).replace(microsecond=0)
    made = await stamp(NOTE, authority.url)
    found = verify(made, NOTE, authority.roots)
    assert found.by == "CN=good"
    assert before <= found.at <= dt.datetime.now(dt.UTC)
    other = pem(certify("Other", authority.root, "Other", authority.root, purpose=None))
    assert verify(made, NOTE, other + authority.roots + authority.roots) == found


async def test_an_authority_may_have_another_one_above_it(authority: Authority) -> None:
    authority.behave(signer="deep")
    made = await stamp(NOTE, authority.url)
    assert verify(made, NOTE, authority.roots).by == "CN=deep"


async def test_any_tool_verifies_it(authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "note.tsr").write_bytes(await stamp(NOTE, authority.url))
    (tmp_path / "note").write_text(NOTE)
    (tmp_path / "roots").write_bytes(authority.roots)
    openssl("ts", "-verify", "-in", tmp_path / "note.tsr", "-data", tmp_path / "note", "-CAfile", tmp_path / "roots")


def test_it_holds_for_this_note_and_this_root_only(authority: Authority, token: bytes) -> None:
    assert isinstance(verify(token, NOTE, authority.roots), Stamped)
    with pytest.raises(StampError, match="something else"):
        verify(token, NOTE + " ", authority.roots)
    stranger = ec.generate_private_key(ec.SECP256R1())
    same_name = pem(certify("Root", stranger, "Root", stranger, purpose=None))
    with pytest.raises(StampError, match="does not hold"):
        verify(token, NOTE, same_name)
    for roots in (b"", b"x", authority.roots.replace(b"BEGIN", b"begin"), authority.roots[:100]):
        with pytest.raises(StampError, match="cannot be read"):
            verify(token, NOTE, roots)


def other_digest(query: bytes) -> bytes:
    digest = timestamp.hashlib.sha256(NOTE.encode()).digest()
    assert digest in query
    return query.replace(digest, bytes(32))


def other_nonce(_query: bytes) -> bytes:
    return rfc3161_client.TimestampRequestBuilder(NOTE.encode(), rfc3161_client.HashAlgorithm.SHA256).build().as_bytes()


def no_nonce(_query: bytes) -> bytes:
    builder = rfc3161_client.TimestampRequestBuilder(NOTE.encode(), rfc3161_client.HashAlgorithm.SHA256, nonce=False)
    return builder.build().as_bytes()


def other_hash(_query: bytes) -> bytes:
    builder = rfc3161_client.TimestampRequestBuilder(NOTE.encode(), rfc3161_client.HashAlgorithm.SHA512)
    return builder.build().as_bytes()


@pytest.mark.parametrize(
    ("behaviour", "said"),
    [
        ({"query": other_digest}, "something else"),
        ({"query": other_nonce}, "another request"),
        ({"query": no_nonce}, "another request"),
        ({"query": other_hash, "config": "strict"}, "something else"),
        ({"config": "strict"}, "refused, with status 2"),
        ({"reply": lambda _: b""}, "cannot be read"),
        ({"reply": lambda _: b"garbage"}, "cannot be read"),
        ({"reply": lambda _: der(0x30, der(0x30, der(2, b"\0")))}, "cannot be read"),
        ({"reply": lambda made: made[:-1]}, "cannot be read"),
        ({"reply": lambda made: made + bytes(timestamp.MAX_TOKEN)}, "too long"),
    ],
)
async def test_what_is_no_stamp_of_this_note_is_not_taken(
    authority: Authority, behaviour: dict[str, Any], said: str
) -> None:
    authority.behave(**behaviour)
    with pytest.raises(StampError, match=said):
        await stamp(NOTE, authority.url)


@pytest.mark.parametrize(("signer", "said"), [("expired", "expired"), ("server", "unsuitable"), ("mail", "unsuitable")])
async def test_who_may_not_stamp_does_not(authority: Authority, signer: str, said: str) -> None:
    authority.behave(signer=signer)
    made = await stamp(NOTE, authority.url)
    with pytest.raises(StampError, match=said):
        verify(made, NOTE, authority.roots)


async def test_another_answer_than_a_stamp_is_told(authority: Authority) -> None:
    for status, kind in ((500, authority.kind), (302, authority.kind), (200, b"text/html")):
        authority.status, authority.kind = status, kind
        with pytest.raises(StampError, match=f"answered {status}"):
            await stamp(NOTE, authority.url)


async def test_an_authority_with_another_time_is_told(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    late = dt.datetime.now(dt.UTC) + dt.timedelta(minutes=6)
    monkeypatch.setattr(timestamp.clock, "now", lambda: late)
    with pytest.raises(StampError, match="another time"):
        await stamp(NOTE, authority.url)


async def test_one_that_is_silent_or_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timestamp, "STAMP_S", 0.2)

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(listen, "127.0.0.1", 0) as silent:
        with pytest.raises(StampError, match="reached"):
            await stamp(NOTE, f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}")
    with pytest.raises(StampError, match="reached"):
        await stamp(NOTE, "http://127.0.0.1:9")
    with pytest.raises(StampError, match="by https"):
        await stamp(NOTE, "http://tsa.example")


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=some.integers(0), bit=some.integers(0, 7), cut=some.booleans())
@example(at=0, bit=0, cut=True)
@example(at=10**9, bit=0, cut=True)
def test_one_bit_makes_no_other_stamp(served: Authority, token: bytes, at: int, bit: int, cut: bool) -> None:
    at %= len(token)
    changed = token[:at] if cut else token[:at] + bytes([token[at] ^ 1 << bit]) + token[at + 1 :]
    genuine = verify(token, NOTE, served.roots)
    try:
        found = verify(changed, NOTE, served.roots)
    except StampError:
        return
    assert found == genuine, "what no signature covers may differ, and what it proves is the same"


def test_the_extra_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    timestamp.demand_usable("https://tsa.example")
    with pytest.raises(SetupError, match="by https"):
        timestamp.demand_usable("http://tsa.example")
    monkeypatch.setitem(sys.modules, "rfc3161_client", None)
    with pytest.raises(SetupError, match=r"consent-service\[timestamps\]"):
        timestamp.demand_usable("https://tsa.example")
