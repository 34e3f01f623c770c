"""Tokens: what is refused, each with the same token accepted when nothing was done to it; keys; and what is remembered.

The keys are made here, and the fetch is ours; `tests/oidc` has a provider that nobody here wrote.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import hmac
import json
import re
import statistics
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from hypothesis import given, settings
from hypothesis import strategies as st
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.utils import der_to_raw_signature

from consent_service.auth import MAX_TOKEN
from consent_service.errors import Unauthenticated, Unavailable
from consent_service.policies import Duration, Issuer
from consent_service.policies.model import Assurance
from consent_service.tokens import Claims, Jwks, Verifier, demand_assurance, fetch, jwk, keys, verify
from consent_service.tokens.shape import MAX_DEPTH

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
T = int(NOW.timestamp())
ISS, JWKS = "https://login.shop.example", "https://login.shop.example/jwks"
API, CLIENT = "https://consent.example/shop", "shop-web"
NONCE = "the nonce of this login"
REFUSAL = "This token is not valid here."

SHOP = Issuer(
    issuer=ISS, kind="login", audience=API, clients=(CLIENT, "shop-app"), jwks_uri=JWKS,
    algorithms=("RS256", "ES256", "EdDSA"),
)  # fmt: skip
FARM = Issuer(
    issuer="https://login.farm.example", kind="login", audience="https://consent.example/farm", clients=("farm-web",),
    jwks_uri="https://login.farm.example/jwks",
)  # fmt: skip
ISSUERS = (SHOP, FARM)


class _Absent:
    def __repr__(self) -> str:
        return "absent"


ABSENT: Any = _Absent()


# -- making tokens --------------------------------------------------------------------------------------------------


def b64(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def rsa_key(bits: int = 2048) -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=bits)


PRIVATE: dict[str, Any] = {
    "rsa": rsa_key(),
    "rsa, too": rsa_key(),
    "ec": ec.generate_private_key(ec.SECP256R1()),
    "ed": ed25519.Ed25519PrivateKey.generate(),
    "farm": rsa_key(),
    "stranger": rsa_key(),
    "weak": rsa_key(1024),
    "enc": rsa_key(),
    "twice": rsa_key(),
    "p384": ec.generate_private_key(ec.SECP384R1()),
}
_HASHES = {"256": hashes.SHA256, "384": hashes.SHA384, "512": hashes.SHA512}


def sign(algorithm: str, key: Any, data: bytes) -> bytes:
    """A signature; a key of bytes makes a MAC, whatever those bytes are."""
    if isinstance(key, bytes):
        return hmac.digest(key, data, "sha256")
    if isinstance(key, ed25519.Ed25519PrivateKey):
        return key.sign(data)
    digest = _HASHES.get(algorithm[-3:], hashes.SHA256)()
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return der_to_raw_signature(key.sign(data, ec.ECDSA(digest)), key.curve)
    pss = padding.PSS(padding.MGF1(digest), digest.digest_size)
    return key.sign(data, pss if algorithm.startswith("PS") else padding.PKCS1v15(), digest)


def public_jwk(name: str, **more: Any) -> dict[str, Any]:
    public = PRIVATE[name].public_key()
    reader = {"RSAPublicKey": RSAAlgorithm, "ECPublicKey": ECAlgorithm}.get(type(public).__name__, OKPAlgorithm)
    if isinstance(public, ec.EllipticCurvePublicKey):
        reader = ECAlgorithm
    numbers = json.loads(reader.to_jwk(public))
    numbers.pop("key_ops", None)
    return {**numbers, "kid": name, **more}


def published(*found: dict[str, Any]) -> bytes:
    return json.dumps({"keys": found}).encode()


SHOP_KEYS = published(
    public_jwk("rsa", use="sig", alg="RS256"), public_jwk("rsa, too"), public_jwk("ec"),
    public_jwk("ed", key_ops=["verify"]), public_jwk("weak"), public_jwk("enc", use="enc"), public_jwk("p384"),
    public_jwk("twice"), public_jwk("stranger", kid="twice"),
    {"kty": "oct", "kid": "oct", "k": b64(b"a secret that everybody can read, as it is published")},
)  # fmt: skip

ACCESS = {
    "iss": ISS, "aud": API, "sub": "ada", "client_id": CLIENT, "iat": T - 10, "exp": T + 600, "jti": "token-1",
    "scope": "check state",
}  # fmt: skip
ID = {"iss": ISS, "aud": CLIENT, "sub": "ada", "iat": T - 10, "exp": T + 600, "nonce": NONCE}
LOGOUT = {
    "iss": ISS, "aud": CLIENT, "sub": "ada", "sid": "s-1", "iat": T - 10, "exp": T + 110, "jti": "logout-1",
    "events": {verify.LOGOUT: {}},
}  # fmt: skip


def changed(of: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in {**of, **changes}.items() if value is not ABSENT}


class Maker:
    """Makes one kind of token; each call may change something about it."""

    def __init__(self, typ: Any, claims: dict[str, Any]) -> None:
        self.typ = typ
        self.claims = claims

    def __call__(self, header: dict[str, Any] | None = None, *, key: Any = "rsa", **claims: Any) -> str:
        named = key if isinstance(key, str) else "rsa"
        algorithm = {"ec": "ES256", "p384": "ES256", "ed": "EdDSA"}.get(named, "RS256")
        head = changed({"alg": algorithm, "typ": self.typ, "kid": named}, header or {})
        return self.raw(json.dumps(head).encode(), json.dumps(changed(self.claims, claims)).encode(), key)

    def raw(self, header: bytes | None = None, claims: bytes | None = None, key: Any = "rsa") -> str:
        """With any bytes for header and claims, and a good signature of them."""
        head = header or json.dumps(changed({"alg": "RS256", "typ": self.typ, "kid": "rsa"}, {})).encode()
        data = f"{b64(head)}.{b64(claims or json.dumps(changed(self.claims, {})).encode())}"
        named = re.search(rb'"alg": "((?:RS|PS|ES)[0-9]+)"', head)
        private = PRIVATE[key] if isinstance(key, str) else key
        return f"{data}.{b64(sign(named[1].decode() if named else 'RS256', private, data.encode()))}"

    def text(self, old: str, new: str) -> str:
        """With a piece of the claims' JSON replaced by what no encoder would write."""
        text = json.dumps(changed(self.claims, {}))
        assert text.count(old) == 1
        return self.raw(claims=text.replace(old, new).encode("utf-8", "surrogatepass"))


access, id_token, logout = Maker("at+jwt", ACCESS), Maker("JWT", ID), Maker("logout+jwt", LOGOUT)


def parts(token: str, **replaced: str) -> str:
    header, claims, signature = token.split(".")
    named = {"header": header, "claims": claims, "signature": signature, **replaced}
    return f"{named['header']}.{named['claims']}.{named['signature']}"


def signature(token: str) -> bytes:
    last = token.rpartition(".")[2]
    return base64.urlsafe_b64decode(last + "=" * (-len(last) % 4))


def pem() -> bytes:
    public = PRIVATE["rsa"].public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def long_numbers() -> str:
    """Of which msgspec by itself reads a hundred in a millisecond."""
    return f"[{','.join(['9e307'] * 900)}]"


def long_chain() -> str:
    return '{"a":' * MAX_DEPTH + "{}" + "}" * MAX_DEPTH


# -- the same for every kind ----------------------------------------------------------------------------------------

Hostile = dict[str, Callable[[], str]]


def of_any_kind(make: Maker) -> Hostile:
    """What must not be done to a token of any kind."""
    table: Hostile = {}

    def each(what: str, values: Iterable[Any], made: Callable[[Any], str]) -> None:
        table.update({f"{what} {value!a:.16} ({n})": partial(made, value) for n, value in enumerate(values)})

    each("alg", (
        "none", "None", "NONE", "nOnE", "HS256", "RS512", "PS256", "RS1", "rs256", "", None, ["RS256"], ABSENT,
    ), lambda value: make({"alg": value}))  # fmt: skip
    each("without signature, alg", ("none", "NONE", "RS256"), lambda value: parts(make({"alg": value}), signature=""))
    each("header", (
        {"jwk": public_jwk("rsa")}, {"jku": JWKS}, {"x5u": JWKS}, {"x5c": ["AAAA"]}, {"crit": ["exp"]}, {"crit": []},
        {"b64": True}, {"b64": False}, {"b64": False, "crit": ["b64"]}, {"enc": "A256GCM"}, {"zip": "DEF"},
    ), make)  # fmt: skip
    each("kid", (
        "../../../../dev/null", "rsa' UNION SELECT 'key'--", "rsa\0", "k" * 5000, "https://evil.example/jwks", "",
        "ec", "enc", "oct", "nobody", 7, None, ["rsa"], {"rsa": 1}, ABSENT,
    ), lambda value: make({"kid": value}))  # fmt: skip
    for claim in ("exp", "iat"):
        each(claim, (ABSENT, None, True, False, str(T), "", -1, 1e300, [T], {}, T + 10**6),
             lambda value, claim=claim: make(**{claim: value}))  # fmt: skip
        each(f"JSON with {claim}", ("NaN", "Infinity", "-Infinity", "1e999", "-0.1", "9" * 400),
             lambda value, claim=claim: make.text(f'"{claim}": {make.claims[claim]}', f'"{claim}": {value}'),
             )  # fmt: skip
    each("nbf", (T + 60, None, True, str(T), 1e300, -1), lambda value: make(nbf=value))
    each("iss", (ABSENT, None, ISS + "/", ISS.upper(), ISS + "\0", "https://evil.example", [ISS], 7, "", FARM.issuer),
         lambda value: make(iss=value))  # fmt: skip
    ours = make.claims["aud"]
    each("aud", (
        ABSENT, None, "", 7, [], {}, [ours, "https://other.example"], [ours, ours], [[ours]], [None], {ours: 1},
        ours + "/", ours.upper(), FARM.audience, FARM.clients[0],
    ), lambda value: make(aud=value))  # fmt: skip
    each("sub", (
        "ada\0", "a" * 256, "a\u200bda", "\u202eada", " ada", "ada ", "ada\n", "a\u2028da", "ada\ufffd", "\ue000", 7,
        None, "", ["ada"], unicodedata.normalize("NFD", "Zoë"),
    ), lambda value: make(sub=value))  # fmt: skip
    each("jti", (7, "", "j" * 256, "j\n", None), lambda value: make(jti=value))
    table |= {
        "sub with half a character": lambda: make.text('"sub": "ada"', '"sub": "ada\\ud800"'),
        "sub in bytes that are no UTF-8": lambda: make.raw(claims=json.dumps(make.claims).encode() + b"\xff"),
        "expired": lambda: make(iat=T - 700, exp=T - 31),
        "issued in the future": lambda: make(iat=T + 31),
        "issued in the future, good before": lambda: make(iat=T + 31, nbf=T - 10),
        "ends before it begins": lambda: make(iat=T - 10, exp=T - 11),
        "lifetime too long": lambda: make(exp=T + 86_400 - 9),
        "kind in upper case with a space": lambda: make({"typ": f"{make.typ} "}),
        "typ number": lambda: make({"typ": 7}),
        "typ null": lambda: make({"typ": None}),
        "typ of another kind": lambda: make({"typ": "token-introspection+jwt"}),
        "scope a list": lambda: make(scope=["check"]),
    }
    return table | _forms(make) | _signatures(make)


def _forms(make: Maker) -> Hostile:
    """What is no token, or a token in another spelling."""
    whole = json.dumps(make.claims)
    return {
        "empty": str,
        "dots alone": lambda: "..",
        "many dots": lambda: "a." * 4000,
        "only dots": lambda: "." * MAX_TOKEN,
        "two segments": lambda: make().rpartition(".")[0],
        "four segments": lambda: make() + ".AAAA",
        "five segments": lambda: ".".join(["AAAA"] * 5),
        "empty header": lambda: parts(make(), header=""),
        "empty claims": lambda: parts(make(), claims=""),
        "empty signature": lambda: parts(make(), signature=""),
        "padded": lambda: make() + "=",
        "padded twice": lambda: make() + "==",
        "padded inside": lambda: make().replace(".", "=.", 1),
        "newline after": lambda: make() + "\n",
        "space before": lambda: " " + make(),
        "tab inside": lambda: make().replace(".", ".\t", 1),
        "NUL after": lambda: make() + "\0",
        "scheme before": lambda: "Bearer " + make(),
        "20 MB": lambda: make() + "A" * 20_000_000,
        "20 MB of dots": lambda: "." * 20_000_000,
        "one too long": lambda: make(pad="x" * MAX_TOKEN),
        "no base64": lambda: parts(make(), claims="!!!!"),
        "the other base64": lambda: parts(make(), signature="+/" + make().rpartition(".")[2][2:]),
        "not in ASCII": lambda: make().replace("A", "Ａ"),
        "half a character": lambda: make() + "\ud800",
        "a length that no bytes have": lambda: parts(make(), claims="AAAAA"),
        "header no JSON": lambda: make.raw(header=b"alg=RS256"),
        "header a list": lambda: make.raw(header=b'["RS256"]'),
        "claims no JSON": lambda: make.raw(claims=b"sub=ada"),
        "claims a list": lambda: make.raw(claims=f"[{whole}]".encode()),
        "claims null": lambda: make.raw(claims=b"null"),
        "claims packed": lambda: make.raw(claims=gzip.compress(whole.encode())),
        "claims with a byte order mark": lambda: make.raw(claims=b"\xef\xbb\xbf" + whole.encode()),
        "claims and more": lambda: make.raw(claims=f"{whole} {{}}".encode()),
        "claims in UTF-16": lambda: make.raw(claims=whole.encode("utf-16")),
        "a claim twice": lambda: make.text('"sub": "ada"', '"sub": "eve", "sub": "ada"'),
        "a claim twice, once escaped": lambda: make.text('"sub": "ada"', '"\\u0073ub": "eve", "sub": "ada"'),
        "a claim twice, further in": lambda: make.text('"sub": "ada"', '"sub": "ada", "x": {"y": 1, "y": 2}'),
        "a header member twice": lambda: make.raw(
            header=f'{{"alg": "RS256", "kid": "rsa", "typ": "x", "typ": "{make.typ}"}}'.encode()
        ),
        "numbers that take long to read": lambda: make.text('"sub": "ada"', f'"sub": 1, "x": {long_numbers()}'),
        "a number beyond all": lambda: make.text('"sub": "ada"', '"sub": "ada", "x": 1e999'),
        "depths": lambda: make.text('"sub": "ada"', f'"sub": "ada", "x": {long_chain()}'),
        "great depths": lambda: make.raw(claims=b"[" * 5000 + b"]" * 5000),
        "great depths of objects": lambda: make.raw(claims=b'{"a":' * 900 + b"1" + b"}" * 900),
        "depths in the header": lambda: make.raw(header=b'{"alg":"RS256","x":' + b"[" * 900 + b"]" * 900 + b"}"),
        "a long number": lambda: make.text('"sub": "ada"', f'"sub": "ada", "x": {"1" * 5000}'),
    }  # fmt: skip


def _signatures(make: Maker) -> Hostile:
    """What was not signed by the key that it must be signed by."""
    eve = {"sub": "eve"}
    return {
        "another's signature": lambda: parts(make(**eve), signature=make().rpartition(".")[2]),
        "other claims": lambda: parts(make(), claims=make(**eve).split(".")[1]),
        "other header": lambda: parts(make(), header=make({"x": 1}).split(".")[0]),
        "signature cut": lambda: make()[:-6],
        "signature of zeros": lambda: parts(make(), signature=b64(bytes(256))),
        "a stranger's key": lambda: make({"kid": "rsa"}, key="stranger"),
        "another issuer's key": lambda: make({"kid": "rsa"}, key="farm"),
        "another issuer's key by its own name": lambda: make(key="farm"),
        "a key that stands twice": lambda: make(key="twice"),
        "the other key that stands twice": lambda: make({"kid": "twice"}, key="stranger"),
        "a key for encryption": lambda: make(key="enc"),
        "RSA of 1024 bits": lambda: make(key="weak"),
        "HS256 with the public key": lambda: make({"alg": "HS256"}, key=pem()),
        "HS256 with the public key as JWK": lambda: make({"alg": "HS256"}, key=json.dumps(public_jwk("rsa")).encode()),
        "HS256 with the published secret": lambda: make(
            {"alg": "HS256", "kid": "oct"}, key=b"a secret that everybody can read, as it is published"
        ),
        "HS256 with nothing": lambda: make({"alg": "HS256", "kid": "../../dev/null"}, key=b""),
        "RS256 with a MAC of the public key": lambda: make(key=pem()),
        "PSS under the name of RS256": lambda: parts(
            token := make(), signature=b64(sign("PS256", PRIVATE["rsa"], token.rpartition(".")[0].encode()))
        ),
        "RS512, which is not on the list": lambda: make({"alg": "RS512"}),
        "ES256 in DER": lambda: parts(
            token := make(key="ec"),
            signature=b64(PRIVATE["ec"].sign(token.rpartition(".")[0].encode(), ec.ECDSA(hashes.SHA256()))),
        ),
        "ES256 of zeros": lambda: parts(make(key="ec"), signature=b64(bytes(64))),
        "ES256 by a key of another curve": lambda: make(key="p384"),
        "EdDSA of zeros": lambda: parts(make(key="ed"), signature=b64(bytes(64))),
        "EdDSA, cut": lambda: make(key="ed")[:-4],
        "the same bytes spelled otherwise": lambda: _spelled_otherwise(make()),
    } | {f"much to read: {name}": partial(_forged, make, text) for name, text in {
        "lists": f"[{'[],' * 1500}[]]", "objects": f"[{'{},' * 1500}0]", "numbers": f"[{'1e9,' * 1100}0]",
        "members": "{" + ",".join(f'"{n}":0' for n in range(600)) + "}", "escapes": '"' + "\\u0041" * 800 + '"',
        "marks": '"' + '\\"' * 2300 + '"',
    }.items()}  # fmt: skip


def _forged(make: Maker, text: str) -> str:
    """Good in all but the signature, and as laborious as a token of that length can be."""
    token = make.text('"sub": "ada"', f'"sub": "ada", "x": {text}')
    assert len(token) <= MAX_TOKEN
    return parts(token, signature=make().rpartition(".")[2])


def _spelled_otherwise(token: str) -> str:
    """The last character of base64url has bits that belong to no byte."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    spelled = token[:-1] + alphabet[alphabet.index(token[-1]) ^ 1]
    assert signature(spelled) == signature(token)
    return spelled


# -- and what concerns one kind alone -------------------------------------------------------------------------------

HOSTILE_ACCESS = of_any_kind(access) | {
    "typ JWT": lambda: access({"typ": "JWT"}),
    "typ absent": lambda: access({"typ": ABSENT}),
    "an ID token": id_token,
    "an ID token for this audience": lambda: id_token(aud=API, client_id=CLIENT, jti="j"),
    "a logout token": logout,
    "a logout token for this audience": lambda: logout(aud=API, client_id=CLIENT),
    "no jti": lambda: access(jti=ABSENT),
    "no sub": lambda: access(sub=ABSENT),
    "no client_id": lambda: access(client_id=ABSENT),
    "client_id null": lambda: access(client_id=None),
    "client_id number": lambda: access(client_id=7),
    "client_id with NUL": lambda: access(client_id="shop\0"),
    "client_id too long": lambda: access(client_id="c" * 256),
    "bound to a key": lambda: access(cnf={"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}),
}
HOSTILE_ID = of_any_kind(id_token) | {
    "typ at+jwt": lambda: id_token({"typ": "at+jwt"}),
    "an access token": access,
    "an access token for the client": lambda: access(aud=CLIENT, nonce=NONCE),
    "a logout token": logout,
    "a logout token with the nonce": lambda: logout(nonce=NONCE),
    "no sub": lambda: id_token(sub=ABSENT),
    "no nonce": lambda: id_token(nonce=ABSENT),
    "nonce null": lambda: id_token(nonce=None),
    "nonce empty": lambda: id_token(nonce=""),
    "another nonce": lambda: id_token(nonce="the nonce of another login"),
    "the nonce and more": lambda: id_token(nonce=NONCE + "x"),
    "nonce in a list": lambda: id_token(nonce=[NONCE]),
    "for the API": lambda: id_token(aud=API),
    "two audiences, ours authorised": lambda: id_token(aud=[CLIENT, "other"], azp=CLIENT),
    "azp another of our clients": lambda: id_token(azp="shop-app"),
    "azp null": lambda: id_token(azp=None),
    "azp list": lambda: id_token(azp=[CLIENT]),
    "of eleven minutes ago": lambda: id_token(iat=T - 660),
}
HOSTILE_LOGOUT = of_any_kind(logout) | {
    "typ JWT": lambda: logout({"typ": "JWT"}),
    "typ absent": lambda: logout({"typ": ABSENT}),
    "an access token": access,
    "an access token as one": lambda: access(aud=CLIENT, events=LOGOUT["events"]),
    "an ID token": id_token,
    "an ID token as one": lambda: id_token(events=LOGOUT["events"], jti="j"),
    "with a nonce": lambda: logout(nonce=NONCE),
    "with no nonce at all": lambda: logout(nonce=None),
    "no jti": lambda: logout(jti=ABSENT),
    "nobody": lambda: logout(sub=ABSENT, sid=ABSENT),
    "sid null": lambda: logout(sid=None),
    "sid with NUL": lambda: logout(sid="s\0"),
    "for the API": lambda: logout(aud=API),
    "for eleven minutes": lambda: logout(exp=T - 10 + 660),
    "no events": lambda: logout(events=ABSENT),
    "events empty": lambda: logout(events={}),
    "events null": lambda: logout(events=None),
    "events a list": lambda: logout(events=[verify.LOGOUT]),
    "events a text": lambda: logout(events=verify.LOGOUT),
    "another event": lambda: logout(
        events={"https://schemas.openid.net/secevent/risc/event-type/account-disabled": {}}
    ),
    "two events": lambda: logout(events={verify.LOGOUT: {}, "https://other.example": {}}),
    "an event that is no object": lambda: logout(events={verify.LOGOUT: []}),
    "an event that is true": lambda: logout(events={verify.LOGOUT: True}),
}


# -- the world around -----------------------------------------------------------------------------------------------


class Clock:
    """Wall time and monotonic time, moved on by hand."""

    def __init__(self) -> None:
        self.passed = 0.0

    def now(self) -> datetime:
        return NOW + timedelta(seconds=self.passed)

    def monotonic(self) -> float:
        return 5_000 + self.passed


class Issuers:
    """Answers for every issuer; what it answers is up to the test."""

    def __init__(self) -> None:
        self.keys = {JWKS: SHOP_KEYS, FARM.jwks_uri: published(public_jwk("farm"))}
        self.asked: list[str] = []
        self.down = False
        self.gate = asyncio.Event()
        """Closed: whoever fetches hangs."""
        self.gate.set()

    async def fetch(self, uri: str) -> bytes:
        self.asked.append(uri)
        await self.gate.wait()
        if self.down:
            raise httpx.ConnectError("nobody answers")
        return self.keys[uri]


class World:
    """A verifier and what it depends on."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.issuers = Issuers()
        self.jwks = Jwks(self.issuers.fetch, self.clock.monotonic)
        self.verifier = Verifier(self.jwks, self.clock.now)

    async def access(self, token: str) -> Claims:
        return await self.verifier.access_token(token, ISSUERS)

    async def id(self, token: str) -> Claims:
        return await self.verifier.id_token(token, ISSUERS, nonce=NONCE)

    async def logout(self, token: str) -> Claims:
        return await self.verifier.logout_token(token, ISSUERS)


@asynccontextmanager
async def a_world() -> AsyncIterator[World]:
    made = World()
    try:
        yield made
    finally:
        await made.jwks.close()


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with a_world() as made:
        yield made


async def settle() -> None:
    """Let tasks run that wait for nothing."""
    for _ in range(5):
        await asyncio.sleep(0)


# -- hostile tokens -------------------------------------------------------------------------------------------------

Taking = Callable[[str], Awaitable[Claims]]


async def refused(take: Taking, token: str) -> None:
    with pytest.raises(Unauthenticated) as caught:
        await take(token)
    assert (str(caught.value), caught.value.errors, caught.value.extra) == (REFUSAL, (), None), "always the same words"


@pytest.mark.parametrize("case", HOSTILE_ACCESS.values(), ids=HOSTILE_ACCESS)
async def test_a_hostile_access_token_is_refused(world: World, case: Callable[[], str]) -> None:
    token = case()
    await refused(world.access, token)
    assert (await world.access(access())).sub == "ada"
    await refused(world.access, token)
    assert world.verifier.known(token) is None


@pytest.mark.parametrize("case", HOSTILE_ID.values(), ids=HOSTILE_ID)
async def test_a_hostile_id_token_is_refused(world: World, case: Callable[[], str]) -> None:
    token = case()
    await refused(world.id, token)
    assert (await world.id(id_token())).sub == "ada"
    await refused(world.id, token)


@pytest.mark.parametrize("case", HOSTILE_LOGOUT.values(), ids=HOSTILE_LOGOUT)
async def test_a_hostile_logout_token_is_refused(world: World, case: Callable[[], str]) -> None:
    token = case()
    await refused(world.logout, token)
    assert (await world.logout(logout())).sub == "ada"
    await refused(world.logout, token)


@pytest.mark.parametrize("make", [
    access, lambda: access(key="ec"), lambda: access(key="ed"),
    lambda: access({"typ": "application/at+jwt"}), lambda: access({"typ": "AT+JWT"}),
    lambda: access({"x5t": "AAAA", "cty": "x"}), lambda: access({"kid": ABSENT}, key="ec"),
    lambda: access(aud=[API]), lambda: access(sub="Zoë Ångström"), lambda: access(sub="a" * 255),
    lambda: access(iat=T + 29, nbf=T + 29), lambda: access(iat=T - 300, exp=T - 29),
    lambda: access(iat=T - 0.5, exp=T + 0.5),
    lambda: access(exp=T - 10 + 86_400), lambda: access(unknown={"a": [1, {"b": None}]}),
    lambda: access(scope=ABSENT), lambda: access(acr=7, amr="mfa", auth_time="x"),
    lambda: access(pad="x" * 5_000),
])  # fmt: skip
async def test_a_good_access_token_is_accepted(world: World, make: Callable[[], str]) -> None:
    claims = await world.access(make())
    assert (claims.issuer, claims.audience, claims.client) == (SHOP, API, CLIENT)


@pytest.mark.parametrize("make", [
    id_token, lambda: id_token({"typ": ABSENT}), lambda: id_token({"typ": "jwt"}), lambda: id_token(aud=[CLIENT]),
    lambda: id_token(azp=CLIENT), lambda: id_token(iat=T - 600), lambda: id_token(aud="shop-app"),
    lambda: id_token(sid="s-1", jti="j-1"),
])  # fmt: skip
async def test_a_good_id_token_is_accepted(world: World, make: Callable[[], str]) -> None:
    assert (await world.id(make())).identity == f"{ISS}|ada"


@pytest.mark.parametrize("make", [
    logout, lambda: logout({"typ": "application/logout+jwt"}), lambda: logout(sid=ABSENT),
    lambda: logout(exp=T + 590), lambda: logout(events={verify.LOGOUT: {"x": 1}}),
])  # fmt: skip
async def test_a_good_logout_token_is_accepted(world: World, make: Callable[[], str]) -> None:
    assert (await world.logout(make())).identity == f"{ISS}|ada"


async def test_a_logout_of_a_session_names_nobody(world: World) -> None:
    claims = await world.logout(logout(sub=ABSENT))
    assert (claims.sub, claims.sid) == ("", "s-1")
    with pytest.raises(ValueError, match="identifies nobody"):
        _ = claims.identity


async def test_an_empty_nonce_is_no_nonce(world: World) -> None:
    with pytest.raises(Unauthenticated):
        await world.verifier.id_token(id_token(nonce=ABSENT), ISSUERS, nonce="")


async def test_a_nonce_may_be_judged_by_whoever_gave_it_out(world: World) -> None:
    asked: list[str] = []

    def judge(nonce: str) -> bool:
        asked.append(nonce)
        return nonce == NONCE

    assert (await world.verifier.id_token(id_token(), ISSUERS, nonce=judge)).sub == "ada"
    for token in (id_token(nonce="another"), id_token()[:-6], id_token(exp=T - 60), id_token(nonce=ABSENT)):
        with pytest.raises(Unauthenticated):
            await world.verifier.id_token(token, ISSUERS, nonce=judge)
    assert asked == [NONCE, "another"], "a token that is not genuine uses up no nonce"


async def test_only_logins_give_id_tokens(world: World) -> None:
    machines = msgspec.structs.replace(SHOP, kind="service")
    with pytest.raises(Unauthenticated):
        await world.verifier.id_token(id_token(), [machines], nonce=NONCE)


async def test_where_two_issuers_could_be_meant_none_is(world: World) -> None:
    twin = msgspec.structs.replace(SHOP, kind="officer")
    for take in (
        world.verifier.access_token(access(), [SHOP, twin]),
        world.verifier.logout_token(logout(), [SHOP, twin]),
        world.verifier.id_token(id_token(), [SHOP, msgspec.structs.replace(SHOP, audience="x")], nonce=NONCE),
    ):
        with pytest.raises(Unauthenticated):
            await take


async def test_the_issuer_sets_how_long(world: World) -> None:
    strict = msgspec.structs.replace(SHOP, max_lifetime=Duration.parse("PT5M"))
    assert await world.verifier.access_token(access(exp=T + 290), [strict])
    with pytest.raises(Unauthenticated):
        await world.verifier.access_token(access(exp=T + 291), [strict])


async def test_all_that_is_said_is_read(world: World) -> None:
    claims = await world.access(access(sid="s-1", acr="gold", amr=["pwd", 7, "mfa"], nonce="n", scope=" check  state "))
    assert claims == Claims(
        issuer=SHOP, sub="ada", audience=API, client=CLIENT, jti="token-1", nonce="n", sid="s-1", acr="gold",
        issued_at=NOW - timedelta(seconds=10), expires_at=NOW + timedelta(seconds=600), amr=("pwd", "mfa"),
        scopes=frozenset({"check", "state"}), roles=frozenset(),
    )  # fmt: skip


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@settings(deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(sorted({*ACCESS, *ID, *LOGOUT, "azp", "nbf", "acr", "amr", "roles", "cnf"})), JSON, min_size=1
    ),
    st.dictionaries(st.sampled_from(["alg", "typ", "kid", "cty"]), JSON, max_size=2),
)
def test_nothing_signed_breaks_anything(claims: dict[str, Any], header: dict[str, Any]) -> None:
    async def run() -> None:
        async with a_world() as world:
            for make, take in ((access, world.access), (id_token, world.id), (logout, world.logout)):
                await judged(take, make(header, key="ed", **claims))

    asyncio.run(run())


@settings(deadline=None)
@given(st.integers(0, 2000), st.sampled_from([*"AB09-_.=+/ \n\0é", ""]), st.sampled_from([0, 1]))
def test_nothing_spelled_otherwise_is_taken(place: int, mark: str, kept: int) -> None:
    async def run() -> None:
        async with a_world() as world:
            token = access(key="ed")
            at = place % len(token)
            other = token[:at] + mark + token[at + kept :]
            if other != token:
                await refused(world.access, other)

    asyncio.run(run())


async def judged(take: Taking, token: str) -> None:
    """Accepted or refused; any other error fails the test."""
    try:
        assert (await take(token)).issuer in ISSUERS
    except Unauthenticated as error:
        assert str(error) == REFUSAL  # noqa: PT017 -- both outcomes are right


async def test_nothing_is_said_about_a_token(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for case in HOSTILE_ACCESS.values():
        await refused(world.access, case())
    assert capsys.readouterr() == ("", "")


# -- roles ----------------------------------------------------------------------------------------------------------

OFFICE = msgspec.structs.replace(
    SHOP, kind="officer", roles={"dsb": "admin", "leser": "viewer", "export": "exporter"},
    assurance={"admin": Assurance(acr=("gold", "silver"), amr=("mfa", "hwk")), "exporter": Assurance()},
)  # fmt: skip


@pytest.mark.parametrize(("path", "claims", "roles"), [
    ("roles", {"roles": ["dsb", "leser", "gast"]}, {"admin", "viewer"}),
    ("roles", {}, set()),
    ("roles", {"roles": "dsb"}, set()),
    ("roles", {"roles": {"dsb": True}}, set()),
    ("roles", {"roles": [["dsb"], None, 7, {}, "leser"]}, {"viewer"}),
    ("realm_access.roles", {"realm_access": {"roles": ["dsb"]}}, {"admin"}),
    ("realm_access.roles", {"realm_access": ["dsb"]}, set()),
    ("realm_access.roles", {"realm_access.roles": ["leser"], "realm_access": {"roles": ["dsb"]}}, {"viewer"}),
    ("https://shop.example/roles", {"https://shop.example/roles": ["dsb"]}, {"admin"}),
    ("a.b.c", {"a": {"b": None}}, set()),
])  # fmt: skip
async def test_roles_are_mapped(world: World, path: str, claims: dict[str, Any], roles: set[str]) -> None:
    office = msgspec.structs.replace(OFFICE, roles_claim=path)
    assert (await world.verifier.access_token(access(**claims), [office])).roles == roles


@pytest.mark.parametrize(("login", "roles"), [
    ({}, {"viewer", "exporter"}),
    ({"acr": "gold", "amr": ["hwk", "mfa", "pwd"]}, {"admin", "viewer", "exporter"}),
    ({"acr": "silver", "amr": ["mfa", "hwk"]}, {"admin", "viewer", "exporter"}),
    ({"acr": "gold", "amr": ["mfa"]}, {"viewer", "exporter"}),
    ({"acr": "gold"}, {"viewer", "exporter"}),
    ({"acr": "bronze", "amr": ["mfa", "hwk"]}, {"viewer", "exporter"}),
    ({"acr": ["gold"], "amr": "mfa hwk"}, {"viewer", "exporter"}),
])  # fmt: skip
async def test_a_role_demands_a_login(world: World, login: dict[str, Any], roles: set[str]) -> None:
    token = access(roles=["dsb", "leser", "export"], **login)
    claims = await world.verifier.access_token(token, [OFFICE])
    assert claims.roles == {"admin", "viewer", "exporter"}
    assert demand_assurance(claims) == roles


# -- what is remembered ---------------------------------------------------------------------------------------------


async def test_a_verified_token_is_remembered_for_a_minute(world: World) -> None:
    token = access()
    assert world.verifier.known(token) is None
    claims = await world.access(token)
    assert world.verifier.known(token) is claims
    world.clock.passed = 59.9
    assert await world.access(token) is claims
    world.clock.passed = 60
    assert world.verifier.known(token) is None
    assert await world.access(token) == claims


async def test_a_token_is_not_known_after_its_end(world: World) -> None:
    token = access(exp=T + 20)
    await world.access(token)
    world.clock.passed = 19.9
    assert world.verifier.known(token) is not None
    world.clock.passed = 20
    assert world.verifier.known(token) is None
    assert await world.access(token), "as long as clocks may differ it is accepted, each time anew"
    assert world.verifier.known(token) is None
    world.clock.passed = 50
    await refused(world.access, token)


async def test_a_token_is_not_known_when_its_key_is_gone(world: World) -> None:
    first, second = access(), access(key="ec")
    await world.access(first)
    await world.access(second)
    world.issuers.keys[JWKS] = published(public_jwk("ec"))
    await refused(world.access, access({"kid": "new"}))  # makes us look
    assert world.verifier.known(first) is None
    assert world.verifier.known(second) is not None
    await refused(world.access, first)


async def test_a_key_that_stays_keeps_its_tokens(world: World) -> None:
    token = access()
    await world.access(token)
    world.issuers.keys[JWKS] = published(public_jwk("p384"), public_jwk("rsa", use="sig", alg="RS256"))
    await refused(world.access, access({"kid": "new"}))
    assert world.verifier.known(token) is not None


async def test_only_so_many_are_remembered(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "MAX_REMEMBERED", 3)
    tokens = [access(key="ed", jti=f"token-{n}") for n in range(5)]
    for token in tokens:
        await world.access(token)
    assert [world.verifier.known(token) is not None for token in tokens] == [False, False, True, True, True]
    assert len(world.verifier._known) == 3


async def test_who_is_not_accepted_any_more_is_not_known_any_more(world: World) -> None:
    token = access(roles=["dsb"])
    assert await world.access(token)
    with pytest.raises(Unauthenticated):
        await world.verifier.access_token(token, [FARM])
    assert (await world.verifier.access_token(token, [OFFICE])).roles == {"admin"}


async def test_id_and_logout_tokens_are_not_remembered(world: World) -> None:
    await world.id(id_token())
    await world.logout(logout())
    assert world.verifier._known == {}


# -- keys: which are used -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("published_as", [
    public_jwk("rsa", use="enc"), public_jwk("rsa", use=None), public_jwk("rsa", use=["sig"]),
    public_jwk("rsa", key_ops=["sign"]), public_jwk("rsa", key_ops=[]), public_jwk("rsa", key_ops="verify"),
    public_jwk("rsa", key_ops=None), public_jwk("rsa", alg="RS512"), public_jwk("rsa", alg=7),
    public_jwk("rsa", kid=7), public_jwk("rsa", kid=["rsa"]), public_jwk("rsa", kty="EC"),
    public_jwk("rsa", kty=["RSA"]), public_jwk("rsa", n=7), public_jwk("rsa", n=""), public_jwk("rsa", n="!"),
    public_jwk("rsa", e="AA"), public_jwk("rsa", e="Ag"), public_jwk("rsa", e=b64((2**33 + 1).to_bytes(5, "big"))),
    public_jwk("rsa", n=b64((2**8200 + 1).to_bytes(1026, "big"))), public_jwk("weak", kid="rsa"),
    {"kty": "RSA", "kid": "rsa"}, {"kid": "rsa"}, {"kty": "oct", "k": "AAAA", "kid": "rsa"},
    public_jwk("ec", kid="rsa", kty="OKP"), public_jwk("ec", kid="rsa", crv="P-384"),
    public_jwk("ed", kid="rsa", x="AA"),
    public_jwk("ec", kid="rsa", crv="secp256k1"), public_jwk("ed", kid="rsa", crv="Ed448"),
    public_jwk("ec", kid="rsa", x=b64(bytes(32))), public_jwk("ed", kid="rsa", crv=["Ed25519"]),
])  # fmt: skip
def test_a_key_that_may_not_verify_is_left_out(published_as: dict[str, Any]) -> None:
    found = jwk.read(published(published_as, public_jwk("farm")))
    assert [found.find("rsa", algorithm) for algorithm in ("RS256", "ES256", "EdDSA")] == [None] * 3
    assert found.find("farm", "RS256"), "and the others are used"


@pytest.mark.parametrize("body", [
    b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[7]}', b'{"keys":[[]]}', b"\xff", b"<html>", b'{"keys":' + b"[" * 5000,
    published(*[public_jwk("rsa", kid=str(n)) for n in range(65)]),
])  # fmt: skip
async def test_a_body_that_is_no_key_set_changes_nothing(world: World, body: bytes) -> None:
    await world.access(access(jti="before"))
    world.issuers.keys[JWKS] = body
    await refused(world.access, access({"kid": "new"}))
    assert await world.access(access(jti="after"))


def test_a_private_key_is_read_as_a_public_one() -> None:
    private = json.loads(RSAAlgorithm.to_jwk(PRIVATE["rsa"]))
    del private["key_ops"]
    found = jwk.read(published({**private, "kid": "rsa"})).find("rsa", "RS256")
    assert found is not None
    assert isinstance(found.public, rsa.RSAPublicKey)


def test_an_algorithm_needs_its_kind_of_key() -> None:
    found = jwk.read(published(*[public_jwk(name) for name in ("rsa", "ec", "ed", "p384")]))
    fits = {
        name: {algorithm for algorithm in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384",
               "EdDSA", "HS256", "none", "ES512", "ES256K") if found.find(name, algorithm)}
        for name in ("rsa", "ec", "ed", "p384")
    }  # fmt: skip
    assert fits == {
        "rsa": {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"},
        "ec": {"ES256"}, "ed": {"EdDSA"}, "p384": {"ES384"},
    }  # fmt: skip


def test_of_two_keys_of_one_name_neither_is_meant() -> None:
    found = jwk.read(published(public_jwk("rsa", kid="x"), public_jwk("ec", kid="x"), public_jwk("ed", use="enc"),
                               public_jwk("farm", kid="ed"), public_jwk("p384")))  # fmt: skip
    assert [(key.kid, key.kind) for key in found.keys] == [("p384", "P-384")]
    assert found.kids == {"x", "ed", "p384"}


async def test_without_a_name_the_one_key_that_fits_is_meant(world: World) -> None:
    nameless = public_jwk("farm")
    del nameless["kid"]
    world.issuers.keys[JWKS] = published(nameless, public_jwk("ec"))
    assert await world.access(access({"kid": ABSENT}, key="farm"))
    assert await world.access(access({"kid": ABSENT}, key="ec"))
    await refused(world.access, access({"kid": ABSENT}, key="ed"))
    await refused(world.access, access({"kid": "farm"}, key="farm"))
    assert len(world.issuers.asked) == 2, "of the named key alone"


async def test_an_issuer_without_keys_is_taken_at_its_word(world: World) -> None:
    world.issuers.keys[JWKS] = published()
    await refused(world.access, access())


# -- keys: when they are fetched ------------------------------------------------------------------------------------


async def test_many_at_once_fetch_once(world: World) -> None:
    tokens = [access(key="ed", jti=str(n)) for n in range(50)]
    assert len(await asyncio.gather(*map(world.access, tokens))) == 50
    assert world.issuers.asked == [JWKS]


async def test_tenants_of_one_provider_share_its_keys(world: World) -> None:
    other = msgspec.structs.replace(SHOP, audience="https://consent.example/bakery")
    await world.access(access())
    assert await world.verifier.access_token(access(aud=other.audience), [other])
    assert world.issuers.asked == [JWKS]


async def test_who_goes_away_does_not_end_the_fetch_of_the_others(world: World) -> None:
    world.issuers.gate.clear()
    first, second = (asyncio.create_task(world.access(access(key="ed", jti=str(n)))) for n in range(2))
    await settle()
    first.cancel()
    await settle()
    world.issuers.gate.set()
    assert (await second).sub == "ada"
    assert first.cancelled()
    assert world.issuers.asked == [JWKS]


async def test_old_keys_are_refreshed_behind_the_back_of_whoever_verifies(world: World) -> None:
    await world.access(access(jti="1"))
    world.clock.passed = 299
    await world.access(access(jti="2"))
    assert len(world.issuers.asked) == 1
    world.clock.passed = 300
    world.issuers.gate.clear()
    async with asyncio.timeout(1):
        for n in range(20):
            assert await world.access(access(key="ed", jti=f"3-{n}"))
    await settle()
    assert len(world.issuers.asked) == 2, "one fetch, which hangs"
    world.issuers.keys[JWKS] = published(public_jwk("ec"))
    world.issuers.gate.set()
    await settle()
    assert await world.access(access(key="ec", jti="4"))
    assert len(world.issuers.asked) == 2
    await refused(world.access, access(jti="5"))


async def test_keys_that_nobody_asked_about_for_long_are_fetched_before_they_are_used(world: World) -> None:
    await world.access(access(jti="1"))
    world.issuers.keys[JWKS] = published(public_jwk("ec"))
    world.clock.passed = keys.STALE_S
    await refused(world.access, access(jti="2", exp=T + 5_000))
    assert await world.access(access(key="ec", jti="3", exp=T + 5_000))
    world.issuers.down = True
    world.clock.passed = 2 * keys.STALE_S
    assert await world.access(access(key="ec", jti="4", exp=T + 5_000)), "away: what is there serves"


async def test_a_fetch_that_hangs_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "FETCH_S", 0.05)
    world.issuers.gate.clear()
    with pytest.raises(Unavailable):
        await world.access(access())
    world.issuers.gate.set()
    world.clock.passed = 1
    assert await world.access(access())


async def test_a_rotation_is_noticed_at_once(world: World) -> None:
    await world.access(access())
    world.issuers.keys[JWKS] = published(public_jwk("farm", kid="next"), public_jwk("rsa"))
    assert await world.access(access({"kid": "next"}, key="farm"))
    assert await world.access(access(jti="of the old key"))
    assert len(world.issuers.asked) == 2


async def test_all_who_bring_the_new_key_wait_for_the_same_fetch(world: World) -> None:
    await world.access(access())
    world.issuers.keys[JWKS] = published(public_jwk("farm", kid="next"))
    tokens = [access({"kid": "next"}, key="farm", jti=str(n)) for n in range(20)]
    assert len(await asyncio.gather(*map(world.access, tokens))) == 20
    assert len(world.issuers.asked) == 2


async def test_unknown_keys_are_asked_for_once_in_thirty_seconds(world: World) -> None:
    await world.access(access())
    for n in range(100):
        await refused(world.access, access({"kid": f"unknown-{n}"}, key="ed"))
    assert len(world.issuers.asked) == 2
    world.clock.passed = 29.9
    await refused(world.access, access({"kid": "unknown"}))
    assert len(world.issuers.asked) == 2
    world.clock.passed = 30
    for n in range(100):
        await refused(world.access, access({"kid": f"unknown-{n}"}, key="ed"))
    assert len(world.issuers.asked) == 3
    world.clock.passed = 60
    await refused(world.access, access({"kid": ABSENT}))
    await refused(world.access, access({"kid": "enc"}, key="enc"))
    assert len(world.issuers.asked) == 3, "neither names a key that the issuer might have now"


async def test_an_unknown_key_in_the_first_token_fetches_once(world: World) -> None:
    await refused(world.access, access({"kid": "unknown"}))
    assert world.issuers.asked == [JWKS]


async def test_other_peoples_tokens_make_nobody_fetch(world: World) -> None:
    for token in (access(iss="https://evil.example"), access(aud="x"), access({"alg": "none"}), access(exp=T - 99)):
        await refused(world.access, token)
    await refused(world.id, id_token(iss="https://evil.example"))
    await refused(world.logout, logout(iss="https://evil.example"))
    assert world.issuers.asked == []


async def test_an_outage_leaves_the_keys_for_a_day(world: World) -> None:
    await world.access(access())
    world.issuers.down = True
    for passed in (300, 310, 329):
        world.clock.passed = passed
        assert await world.access(access(iat=T + passed, exp=T + passed + 60))
        await settle()
    assert len(world.issuers.asked) == 2, "and the issuer is left alone for a while"
    world.clock.passed = 330
    assert await world.access(access(iat=T + 330, exp=T + 400))
    await refused(world.access, access({"kid": "unknown"}, iat=T + 330, exp=T + 400))
    assert len(world.issuers.asked) == 3
    world.clock.passed = 86_399
    assert await world.access(access(iat=T + 86_399, exp=T + 86_499))
    world.clock.passed = 86_400
    last = access(iat=T + 86_399, exp=T + 86_499)
    assert world.verifier.known(last) is None
    world.clock.passed = 86_402
    with pytest.raises(Unavailable):
        await world.access(last)
    world.issuers.down = False
    world.clock.passed = 86_404
    assert await world.access(last)


async def test_a_dead_issuer_is_asked_once_a_second(world: World) -> None:
    world.issuers.down = True
    for _ in range(20):
        with pytest.raises(Unavailable):
            await world.access(access())
    assert len(world.issuers.asked) == 1
    world.clock.passed = 1
    world.issuers.down = False
    assert await world.access(access())


async def test_one_dead_issuer_does_not_concern_another(world: World) -> None:
    world.issuers.gate.clear()
    waiting = asyncio.create_task(world.access(access()))
    await settle()
    world.jwks._sources[FARM.jwks_uri] = keys._Source(FARM.jwks_uri)
    farm = world.jwks._sources[FARM.jwks_uri]
    farm.keys, farm.loaded_at = jwk.read(world.issuers.keys[FARM.jwks_uri]), world.clock.monotonic()
    claims = await world.access(access(key="farm", iss=FARM.issuer, aud=FARM.audience))
    assert claims.issuer == FARM
    world.issuers.gate.set()
    await waiting


async def test_closing_ends_what_is_under_way(world: World) -> None:
    await world.access(access(jti="1"))
    world.clock.passed = 300
    world.issuers.gate.clear()
    await world.access(access(jti="2"))
    await settle()
    async with asyncio.timeout(1):
        await world.jwks.close()
    assert world.jwks._sources[JWKS].loading is None
    assert await world.access(access(jti="3")), "the keys are still there"
    with pytest.raises(Unavailable):
        await world.access(access(key="farm", iss=FARM.issuer, aud=FARM.audience))
    assert len(world.issuers.asked) == 2


async def test_closing_lets_go_of_whoever_waits(world: World) -> None:
    world.issuers.gate.clear()
    waiting = asyncio.create_task(world.access(access()))
    await settle()
    await world.jwks.close()
    with pytest.raises(Unavailable):
        await waiting


async def test_a_failure_is_told_without_what_was_sent(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    world.issuers.down = True
    with pytest.raises(Unavailable):
        await world.access(access())
    line = json.loads(capsys.readouterr().err)
    assert (line["source"], line["url"], line["error"]) == ("tokens", JWKS, "ConnectError")
    assert "ada" not in str(line)


# -- the fetch itself -----------------------------------------------------------------------------------------------


@asynccontextmanager
async def answering(*chunks: bytes, every_s: float = 0.0) -> AsyncIterator[str]:
    """The address of a server that sends these bytes to whoever asks."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            for chunk in chunks:
                writer.write(chunk)
                await writer.drain()
                await asyncio.sleep(every_s)
        except OSError:
            pass  # they have heard enough
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks"


OK = b"HTTP/1.1 200 OK\r\nConnection: close\r\n"


async def test_a_body_is_fetched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    async with answering(OK + b"\r\n" + SHOP_KEYS) as uri:
        assert await fetch.fetch_keys(uri) == SHOP_KEYS
        assert await fetch.fetch_keys(uri.replace("127.0.0.1", "localhost")) == SHOP_KEYS
    async with answering(OK + b"\r\n", b"x" * 65_536) as uri:
        assert len(await fetch.fetch_keys(uri)) == 65_536


@pytest.mark.parametrize("answer", [
    [b"HTTP/1.1 302 Found\r\nConnection: close\r\nLocation: http://127.0.0.1:9/\r\n\r\n"],
    [b"HTTP/1.1 500 Oh\r\nConnection: close\r\n\r\n"],
    [b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n"],
    [OK + b"\r\n", *[b"x" * 1024] * 65],
    [OK + b"Content-Length: 99999999999\r\n\r\n", *[b"x" * 1024] * 65],
    [OK + b"Content-Encoding: gzip\r\n\r\n", gzip.compress(bytes(10_000_000))],
])  # fmt: skip
async def test_an_answer_that_is_no_plain_body_is_refused(answer: list[bytes]) -> None:
    async with answering(*answer) as uri:
        with pytest.raises(ValueError, match="the "):
            await fetch.fetch_keys(uri)


async def test_an_answer_that_drips_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "FETCH_S", 0.2)
    async with answering(OK + b"\r\n", *[b" "] * 50, every_s=0.05) as uri:
        with pytest.raises(TimeoutError):
            await fetch.fetch_keys(uri)


@pytest.mark.parametrize("uri", [
    "http://login.shop.example/jwks", "http://127.0.0.1.evil.example/", "http://127.0.0.1@evil.example/",
    "http://localhost.evil.example/", "http://10.0.0.1/", "http://0.0.0.0/", "http://169.254.169.254/",
    "ftp://127.0.0.1/", "file:///etc/passwd", "https://user:secret@login.shop.example/", "//127.0.0.1/", "", "http://",
    "http://127.0.0.1:99999/",
])  # fmt: skip
async def test_an_address_that_may_not_be_asked_is_not(uri: str) -> None:
    with pytest.raises(ValueError, match="by https"):
        await fetch.fetch_keys(uri)


# -- cost -----------------------------------------------------------------------------------------------------------


async def cost(world: World, take: Taking, token: str) -> float:
    """CPU milliseconds of refusing (or accepting) a token: the median of five."""
    spent = []
    for _ in range(5):
        world.verifier._known.clear()
        began = time.process_time()
        with suppress(Unauthenticated):
            await take(token)
        spent.append((time.process_time() - began) * 1000)
    return statistics.median(spent)


@pytest.mark.slow
async def test_a_refusal_costs_less_than_five_milliseconds(world: World) -> None:
    kinds = [("access", HOSTILE_ACCESS, world.access, access), ("id", HOSTILE_ID, world.id, id_token),
             ("logout", HOSTILE_LOGOUT, world.logout, logout)]  # fmt: skip
    costs = {}
    for kind, table, take, make in kinds:
        await take(make())
        costs |= {f"{kind}: {name}": await cost(world, take, case()) for name, case in table.items()}
        costs |= {f"{kind}: accepted, {key}": await cost(world, take, make(key=key)) for key in ("rsa", "ec", "ed")}
    for name, spent in sorted(costs.items(), key=lambda item: -item[1]):
        print(f"{spent:8.3f} ms  {name}")  # noqa: T201 -- shown with -s
    await world.access(token := access())
    began = time.process_time()
    for _ in range(100_000):
        world.verifier.known(token)
    print(f"{(time.process_time() - began) * 10:8.3f} µs  known")  # noqa: T201
    assert max(costs.values()) < 5
