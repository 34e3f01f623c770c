"""Fetching an issuer's keys: one plain GET of an address that the operator configured, and nothing that it leads to."""

from __future__ import annotations

import httpx

from consent_service import outbound

MAX_BODY = 65_536
"""Bytes of a key set; a larger one is not read to its end."""
FETCH_S = 3.0
"""Seconds for all of it: name, connection, headers and body."""
_HEADERS = {"Accept": "application/jwk-set+json, application/json"}


async def fetch_keys(uri: str) -> bytes:
    """The body at `uri`.

    Raises:
        ValueError: the address may not be asked, or what it answers is no plain body of at most MAX_BODY bytes.
        TimeoutError: it was not all there after FETCH_S seconds.
        httpx.HTTPError: it cannot be reached.
    """
    async with await outbound.client() as http:
        answer = await outbound.ask(http, "GET", uri, headers=_HEADERS, seconds=FETCH_S, limit=MAX_BODY)
    if answer.status != httpx.codes.OK:
        raise ValueError("the answer is no plain 200")
    return answer.body
