"""Calls to addresses that the operator configured: https, or http on this machine, bounded, and never led elsewhere."""

from __future__ import annotations

import asyncio
import ssl
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import NamedTuple

import httpx

_PORTS = 65_535
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


class Answer(NamedTuple):
    """What came back."""

    status: int
    kind: str
    """The content type in lower case, without parameters."""
    body: bytes


async def client() -> httpx.AsyncClient:
    """What calls are made with, and connections are kept in: no proxy, no redirects, no cookies. To be closed."""
    trusted = await asyncio.to_thread(_trusted)
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    return httpx.AsyncClient(trust_env=False, follow_redirects=False, verify=trusted, cookies=no_cookies)


async def ask(
    http: httpx.AsyncClient,
    method: str,
    url: str,
    *,
    headers: dict[str, str],
    content: bytes | None = None,
    seconds: float,
    limit: int,
) -> Answer:
    """One call: all of it within `seconds`, the body of the answer as it is on the wire and at most `limit` bytes.

    Raises:
        ValueError: the address may not be asked, or the body of the answer is compressed or too long.
        TimeoutError: it was not all there in time.
        httpx.HTTPError: it cannot be reached.
    """
    demand_safe(url)
    sent = {"Accept-Encoding": "identity", **headers}
    async with (
        asyncio.timeout(seconds),
        http.stream(method, url, headers=sent, content=content, timeout=seconds) as answer,
    ):
        if "content-encoding" in answer.headers:
            raise ValueError("the body is compressed")
        body = bytearray()
        async for chunk in answer.aiter_raw():  # nothing that unfolds into more
            body += chunk
            if len(body) > limit:
                raise ValueError("the body is too long")
    kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
    return Answer(answer.status_code, kind, bytes(body))


def demand_safe(url: str) -> None:
    """Let an address pass that may be asked.

    Raises:
        ValueError: it is neither https nor http on this machine, has a password in it, or leads nowhere.
    """
    try:
        read = httpx.URL(url)  # by the same code that will open it
    except httpx.InvalidURL:
        raise ValueError("this is no address") from None
    safe = read.scheme == "https" or (read.scheme == "http" and read.host in _LOOPBACK)
    if not safe or not read.host or read.userinfo or (read.port or 0) > _PORTS:
        raise ValueError("others are asked by https, or by http on this machine, without a password in the address")


@cache
def _trusted() -> ssl.SSLContext:
    """Whom the machine trusts: an authority of the operator's own is known too. Made once, it takes 30 milliseconds."""
    return ssl.create_default_context()
