"""The public keys of issuers, kept in memory and refreshed behind the back of whoever verifies.

By address, so that tenants of one provider share them. What happens when:

- nothing known: the first to ask fetches, and everybody who asks meanwhile waits with it;
- known, but older than REFRESH_S: verification goes on with what is there, and a task fetches;
- older than STALE_S, because nobody asked for long: the first to ask waits for the fetch;
- a token names a key that is not there: a fetch now, at most one in ASK_AGAIN_S however many tokens name how many keys;
- the issuer cannot be reached: its keys are good for KEEP_S after they were last fetched. So long a key may outlive its
  withdrawal, if the issuer is cut off from us from then on; otherwise it is STALE_S, and the minute for which a
  verified token is remembered.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from consent_service import log
from consent_service.errors import Unavailable
from consent_service.tokens import jwk
from consent_service.tokens.fetch import FETCH_S, fetch_keys
from consent_service.tokens.jwk import Key, KeySet

REFRESH_S = 300.0
STALE_S = 600.0
KEEP_S = 86_400.0
ASK_AGAIN_S = 30.0
"""An issuer whose keys are known is asked once in so long: about unknown keys, and again after it did not answer."""
FAILED_S = 1.0
"""An issuer whose keys are not known and that did not answer is left alone for so long."""

Fetch: TypeAlias = Callable[[str], Awaitable[bytes]]
"""From an address to the body there; raises whatever it likes."""
_NEVER = float("-inf")
_log = log.get("tokens")


class _Source:
    """What is known of one address. Times are of the injected clock, in seconds."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.keys: KeySet | None = None
        self.loads = 0
        """How often the keys were fetched."""
        self.loaded_at = self.failed_at = self.asked_at = _NEVER
        """Asked: about a key that was not there."""
        self.loading: asyncio.Task[None] | None = None
        """The one fetch under way."""

    def current(self, now: float) -> KeySet | None:
        """The keys, unless they are too old to be believed."""
        return self.keys if now - self.loaded_at < KEEP_S else None


class Jwks:
    """The keys of every issuer that was asked about. Belongs to one event loop; must be closed."""

    def __init__(self, fetch: Fetch = fetch_keys, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = monotonic
        self._sources: dict[str, _Source] = {}
        self._closed = False

    async def key(self, uri: str, kid: str | None, algorithm: str) -> Key | None:
        """The key at `uri` that a token means by `kid` and `alg`; None where it may be verified by none.

        A token that names no key makes nobody fetch: it may just as well have been signed by nobody.

        Raises:
            Unavailable: the keys are not known, and cannot be fetched.
        """
        source = self._sources.get(uri)
        if source is None:
            source = self._sources[uri] = _Source(uri)
        loads = source.loads
        keys = source.current(self._clock()) or await self._first(source)
        if kid is not None and kid not in keys.kids and source.loads == loads:
            keys = await self._ask_again(source, keys)
        elif self._clock() - source.loaded_at >= REFRESH_S and self._clock() - source.failed_at >= ASK_AGAIN_S:
            self._load(source)
            if self._clock() - source.loaded_at >= STALE_S:
                await self._loaded(source)
                keys = source.current(self._clock()) or keys
        return keys.find(kid, algorithm)

    def holds(self, uri: str, key: Key) -> bool:
        """Whether the issuer still published the key when it was last asked, and that was not too long ago."""
        source = self._sources.get(uri)
        if source is None or source.keys is None or self._clock() - source.loaded_at >= KEEP_S:
            return False
        return key.print in source.keys.prints

    async def close(self) -> None:
        """End what is under way; keys that are there stay usable, and nothing is fetched any more."""
        self._closed = True
        under_way = [source.loading for source in self._sources.values() if source.loading is not None]
        for task in under_way:
            task.cancel()
        if under_way:
            await asyncio.wait(under_way)

    async def _first(self, source: _Source) -> KeySet:
        if self._clock() - source.failed_at >= FAILED_S:
            self._load(source)
        await self._loaded(source)
        keys = source.current(self._clock())
        if keys is None:
            raise Unavailable("The keys of the issuer cannot be fetched at the moment. Send the same request again.")
        return keys

    async def _ask_again(self, source: _Source, keys: KeySet) -> KeySet:
        now = self._clock()
        if source.loading is None and now - source.asked_at >= ASK_AGAIN_S:
            source.asked_at = now
            self._load(source)
        await self._loaded(source)
        return source.current(self._clock()) or keys

    def _load(self, source: _Source) -> None:
        """Begin to fetch, unless that is under way."""
        if source.loading is None and not self._closed:
            source.loading = asyncio.create_task(self._run(source))

    async def _loaded(self, source: _Source) -> None:
        """Wait for a fetch under way. Who goes away does not end it for the others; how it ended is in the source."""
        if source.loading is not None:
            await asyncio.wait({source.loading})

    async def _run(self, source: _Source) -> None:
        try:
            async with asyncio.timeout(FETCH_S):  # whatever is given for fetching: the next one waits for this one
                source.keys = jwk.read(await self._fetch(source.uri))
            source.loaded_at = self._clock()
            source.loads += 1
        except Exception as error:  # noqa: BLE001 -- whatever it is, the keys that are there stay
            source.failed_at = self._clock()
            _log.warning("an issuer's keys could not be fetched", url=source.uri, error=error)
        finally:
            source.loading = None
