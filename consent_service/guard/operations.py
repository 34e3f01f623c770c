"""The table of HTTP operations, and how a request finds its row."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote_to_bytes

import msgspec

from consent_service import auth
from consent_service.errors import Malformed, NotFound, SetupError


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """One HTTP operation. The guard's table, the OpenAPI file and the framework's routes are all made from it."""

    method: str
    path: str
    """As in OpenAPI: `/v1/requests/{id}`. A parameter fills a whole segment; `{rest*}` at the end one or more."""
    id: str
    tag: str
    summary: str
    scopes: frozenset[str] | None
    """Any ONE of these suffices. None only where `public`."""
    public: bool = False
    """May be called without a credential; one that is sent must still be valid."""
    body: type | None = None
    answer: type | None = None
    media_type: str = "application/json"
    status: int = 200
    pending: bool = False
    """May answer 202 first: somebody else has to agree."""
    errors: frozenset[int] = frozenset()
    """Statuses of errors beyond those that every operation has."""
    keyed: bool = False
    """Takes an idempotency key."""
    brief: bool = False
    """Answers with less where `Prefer: return=minimal` asks for it (RFC 7240)."""
    max_body: int = 65_536
    """Bytes."""
    streams: bool = False
    """Answers piece by piece for as long as it takes; what has an end in time is each piece."""
    form: bool = False
    """Takes a form instead of JSON, because a standard says so."""
    browser: bool = False
    """Usable with a publishable key from a browser on another site."""


class Place:
    """One address and the operations on it."""

    __slots__ = ("allow", "browser_methods", "operations")

    def __init__(self) -> None:
        self.operations: dict[str, Operation] = {}
        self.allow = ""
        self.browser_methods: frozenset[str] = frozenset()

    def add(self, operation: Operation) -> None:
        """Put an operation here; what is answered about the whole address follows."""
        self.operations[operation.method] = operation
        if operation.method == "GET":
            self.operations["HEAD"] = operation
        self.allow = ", ".join(sorted({*self.operations, "OPTIONS"}))
        self.browser_methods = frozenset(method for method, found in self.operations.items() if found.browser)


class _Node:
    """One segment of the addresses that have parameters."""

    __slots__ = ("literals", "parameter", "place", "rest")

    def __init__(self) -> None:
        self.literals: dict[bytes, _Node] = {}
        self.parameter: _Node | None = None
        self.place: Place | None = None
        self.rest: Place | None = None
        """What takes all the segments that are left."""

    def find(self, segments: list[bytes], at: int) -> Place | None:
        """A literal segment goes before a parameter. The tree's depth bounds the recursion, not the request's."""
        if at == len(segments):
            return self.place
        literal = self.literals.get(segments[at])
        place = literal.find(segments, at + 1) if literal is not None else None
        if place is None and self.parameter is not None and _fills(segments[at]):
            place = self.parameter.find(segments, at + 1)
        if place is None and self.rest is not None and all(map(_fills, segments[at:])):
            place = self.rest
        return place


class Table:
    """Every operation by address and method.

    Raises:
        SetupError: an operation is not fit to be served; names all that are wrong.
    """

    def __init__(self, operations: Sequence[Operation]) -> None:
        wrong = [*_faults(operations), *_doubles(operations)]
        if wrong:
            raise SetupError("The table of operations is wrong: " + "; ".join(wrong) + ".")
        self._exact: dict[bytes, Place] = {}
        self._tree = _Node()
        for operation in operations:
            self._place(operation.path).add(operation)

    def find(self, raw: bytes) -> Place:
        """The place of an address as it came over the wire, escapes and all.

        Addresses are compared undecoded: `/v1/%63heck` is not `/v1/check`, so nothing below the guard can read an
        address differently from the guard.

        Raises:
            NotFound: there is none.
            Malformed: the address is no UTF-8, or holds characters that no identifier here may have.
        """
        place = self._exact.get(raw)
        if place is None:
            demand_readable(raw)
            place = self._tree.find(raw.split(b"/"), 1)
        if place is None:
            raise NotFound
        return place

    def _place(self, path: str) -> Place:
        if "{" not in path:
            return self._exact.setdefault(path.encode(), Place())
        node = self._tree
        for segment in path.encode().split(b"/")[1:]:
            if segment.endswith(b"*}"):
                node.rest = node.rest or Place()
                return node.rest
            if segment.startswith(b"{"):
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        node.place = node.place or Place()
        return node.place


def demand_readable(raw: bytes) -> None:
    """Refuse an address or a query whose escapes are broken, or stand for something that is no printable UTF-8."""
    if raw.isascii() and _BROKEN_ESCAPE.search(raw) is None:
        try:
            text = unquote_to_bytes(raw).decode()
        except UnicodeDecodeError:
            text = "\ufffd"
        # U+FFFD is what others make of broken UTF-8: two addresses would become one.
        if text.isprintable() and "\ufffd" not in text:
            return
    raise Malformed("The address cannot be read. Percent-encode it as printable UTF-8.")


def _fills(segment: bytes) -> bool:
    """Whether a segment may be a parameter. An escaped slash would be two segments to whoever decodes it."""
    if b"%" in segment:
        segment = unquote_to_bytes(segment)
    return segment not in (b"", b".", b"..") and b"/" not in segment


_BROKEN_ESCAPE = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_PATH = re.compile(r"(/|(/([A-Za-z0-9._~-]+|\{[a-z_]+\}))+(/\{[a-z_]+\*\})?)")
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})


def _faults(operations: Sequence[Operation]) -> Iterator[str]:
    for one in operations:
        if one.scopes is None and not one.public:
            yield f"`{one.id}` declares no scope and is not public"
        elif one.scopes is not None and not one.scopes:
            yield f"`{one.id}` declares an empty set of scopes, so nobody could call it"
        unknown = sorted((one.scopes or frozenset()) - auth.SCOPES)
        if unknown:
            yield f"`{one.id}` declares the unknown scope `{'`, `'.join(unknown)}`"
        if one.method not in _METHODS:
            yield f"`{one.id}` has the method `{one.method}`; known are {', '.join(sorted(_METHODS))}"
        if _PATH.fullmatch(one.path) is None:
            yield f"`{one.id}` has the path `{one.path}`; write it as `/v1/things/{{id}}`"
        if one.body is not None and one.method == "GET":
            yield f"`{one.id}` is a GET with a body"


def _doubles(operations: Sequence[Operation]) -> Iterator[str]:
    ids: set[str] = set()
    served: dict[tuple[str, str], str] = {}
    for one in operations:
        if one.id in ids:
            yield f"the id `{one.id}` stands twice"
        ids.add(one.id)
        address = (one.method, re.sub(r"\{[^}]*\}", "{}", one.path))
        if address in served:
            yield f"`{one.id}` has the address of `{served[address]}`: {one.method} {one.path}"
        served[address] = one.id
