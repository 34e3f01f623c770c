"""Fetching an issuer's keys: one plain GET of an address that the operator configured, and nothing that it leads to."""

from __future__ import annotations

import asyncio
import ssl
from functools import cache

import httpx

MAX_BODY = 65_536
"""Bytes of a key set; a larger one is not read to its end."""
FETCH_S = 3.0
"""Seconds for all of it: name, connection, headers and body."""
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
_HEADERS = {"Accept": "application/jwk-set+json, application/json", "Accept-Encoding": "identity"}


async def fetch_keys(uri: str) -> bytes:
    """The body at `uri`: https, or http on this machine. Redirects are not followed, and no proxy is asked.

    Raises:
        ValueError: the address may not be asked, or what it answers is no plain body of at most MAX_BODY bytes.
        TimeoutError: it was not all there after FETCH_S seconds.
        httpx.HTTPError: it cannot be reached.
    """
    _demand_safe(uri)
    trusted = await asyncio.to_thread(_trusted)
    async with (
        asyncio.timeout(FETCH_S),
        httpx.AsyncClient(trust_env=False, follow_redirects=False, timeout=FETCH_S, verify=trusted) as http,
        http.stream("GET", uri, headers=_HEADERS) as answer,
    ):
        if answer.status_code != httpx.codes.OK or "content-encoding" in answer.headers:
            raise ValueError("the answer is no plain 200")
        body = bytearray()
        async for chunk in answer.aiter_raw():  # as it is on the wire: nothing that unfolds into more
            body += chunk
            if len(body) > MAX_BODY:
                raise ValueError("the body is too long")
    return bytes(body)


def _demand_safe(uri: str) -> None:
    url = httpx.URL(uri)  # read by the same code that will open it
    safe = url.scheme == "https" or (url.scheme == "http" and url.host in _LOOPBACK)
    if not safe or url.userinfo:
        raise ValueError("keys come by https, or by http from this machine, without a password in the address")


@cache
def _trusted() -> ssl.SSLContext:
    """Whom the machine trusts: an authority of the operator's own is known too. Made once, it takes 30 milliseconds."""
    return ssl.create_default_context()
