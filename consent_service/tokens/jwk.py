"""Key sets (RFC 7517, 7518, 8037): which of the published keys may verify, and which of those a token means."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable
from typing import Annotated, Any

import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from msgspec import Meta

PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

MAX_KEYS = 64
MIN_RSA_BITS, MAX_RSA_BITS = 2_048, 8_192
"""Below, forgeable; above, each verification holds up everybody."""
_MAX_EXPONENT = 2**32

_FITS = {
    **dict.fromkeys(("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"), "RSA"),
    "ES256": "P-256",
    "ES384": "P-384",
    "EdDSA": "Ed25519",
}
"""The kind of key that each algorithm needs."""
_READERS: dict[str, tuple[tuple[str, ...], Callable[[dict[str, Any]], Any]]] = {
    "RSA": (("kty", "n", "e"), RSAAlgorithm.from_jwk),
    "P-256": (("kty", "crv", "x", "y"), ECAlgorithm.from_jwk),
    "P-384": (("kty", "crv", "x", "y"), ECAlgorithm.from_jwk),
    "Ed25519": (("kty", "crv", "x"), OKPAlgorithm.from_jwk),
}
"""For each kind of key: the members that are read, all of them public, and what reads them; it looks at `kty` too."""


class Key(msgspec.Struct, frozen=True):
    """A key that may verify."""

    kid: str | None
    algorithm: str | None
    """The one algorithm that its owner wants it used with; None: whichever it fits."""
    kind: str
    public: PublicKey
    print: bytes
    """SHA-256 of all that is above: the same key has the same print after it was fetched again."""

    def fits(self, algorithm: str) -> bool:
        """Whether a signature of this algorithm can be this key's."""
        return self.kind == _FITS.get(algorithm) and self.algorithm in (None, algorithm)


class KeySet(msgspec.Struct, frozen=True):
    """The keys that an issuer publishes at one moment."""

    keys: tuple[Key, ...]
    """Those that may verify."""
    kids: frozenset[str]
    """Every name in the set, also of keys that may not."""
    prints: frozenset[bytes]

    def find(self, kid: str | None, algorithm: str) -> Key | None:
        """The key of that name; without a name, the only one that fits. None where there is no such key."""
        found = [key for key in self.keys if key.fits(algorithm) and kid in (None, key.kid)]
        return found[0] if len(found) == 1 else None


class _Document(msgspec.Struct):
    keys: Annotated[list[dict[str, Any]], Meta(max_length=MAX_KEYS)]


_DOCUMENT = msgspec.json.Decoder(_Document)


def read(raw: bytes) -> KeySet:
    """The keys in a JWK Set document. Keys that may not verify are left out; a set may be empty, if its owner says so.

    Raises:
        msgspec.DecodeError: it is no key set, or has more than MAX_KEYS.
    """
    published = _DOCUMENT.decode(raw).keys
    names = Counter(kid for jwk in published if isinstance(kid := jwk.get("kid"), str))
    keys = [_key(jwk) for jwk in published]
    # Which of two keys of one name is meant is for the issuer to say; guessing would let one stand in for the other.
    usable = tuple(key for key in keys if key is not None and (key.kid is None or names[key.kid] == 1))
    return KeySet(usable, frozenset(names), frozenset(key.print for key in usable))


def _key(jwk: dict[str, Any]) -> Key | None:
    kind = jwk.get("kty") if jwk.get("kty") == "RSA" else jwk.get("crv")
    kid, algorithm = jwk.get("kid"), jwk.get("alg")
    if not (_is_for_verifying(jwk) and isinstance(kind, str) and kind in _READERS):
        return None
    if not isinstance(algorithm, str | None) or not isinstance(kid, str | None):
        return None
    members, reader = _READERS[kind]
    # A private member that slipped into the set is nothing to us: it must not make a private key of this one.
    numbers = {name: jwk[name] for name in members if name in jwk}
    try:
        public = reader(numbers)
    except (jwt.PyJWTError, ValueError, TypeError):
        return None
    if not _is_strong(public):
        return None
    identity = msgspec.json.encode([kid, algorithm, numbers], order="sorted")
    return Key(kid, algorithm, kind, public, hashlib.sha256(identity).digest())


def _is_for_verifying(jwk: dict[str, Any]) -> bool:
    operations = jwk.get("key_ops", ["verify"])
    return jwk.get("use", "sig") == "sig" and isinstance(operations, list) and "verify" in operations


def _is_strong(public: PublicKey) -> bool:
    if not isinstance(public, RSAPublicKey):
        return True  # one size for each curve
    return MIN_RSA_BITS <= public.key_size <= MAX_RSA_BITS and public.public_numbers().e < _MAX_EXPONENT
