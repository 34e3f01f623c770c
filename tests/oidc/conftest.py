"""A real OpenID provider in a process of its own, and the flows by which its tokens come to be."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from jwt.algorithms import RSAAlgorithm

from consent_service.policies.model import Assurance, Issuer

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "npm"
PEOPLE, MACHINES, OFFICE = (f"https://consent.example/{who}" for who in ("people", "machines", "office"))
CALLBACK = "https://shop.example/callback"
CLIENT = "shop"
_MACHINE = ("machine", "a machine%27s secret%2C for tests only".replace(" ", "+"))
"""As RFC 6749, section 2.3.1 wants id and secret: form-encoded."""
_SCOPE = "check state events write:attested"
_INSTALL_S = 180
_READY_S = 30
_STOP_S = 10


# -- the library ----------------------------------------------------------------------------------------------------


def library() -> str:
    """File URL of the provider's library, installed once as locked; unreachable: skip with the reason, in CI a fail."""
    if shutil.which("npm") is None or shutil.which("node") is None:
        _absent("no OpenID provider: npm is missing")
    wanted = b"".join((HERE / name).read_bytes() for name in ("package.json", "package-lock.json"))
    folder = CACHE / f"oidc-{hashlib.sha256(wanted).hexdigest()[:16]}"
    if not folder.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE, prefix=".draft-") as draft:
            _install(Path(draft) / "whole")
            try:
                (Path(draft) / "whole").rename(folder)  # whole or not at all
            except OSError:
                if not folder.is_dir():  # else another test process was first, and has the same bytes
                    raise
    return (folder / "node_modules" / "oidc-provider" / "lib" / "index.js").as_uri()


def _install(folder: Path) -> None:
    folder.mkdir()
    for name in ("package.json", "package-lock.json"):
        shutil.copy(HERE / name, folder)
    try:
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
            cwd=folder, check=True, capture_output=True, timeout=_INSTALL_S,
        )  # fmt: skip
    except (subprocess.SubprocessError, OSError) as error:
        _absent(f"no OpenID provider: npm could not fetch it ({type(error).__name__})")


def _absent(reason: str) -> NoReturn:
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


# -- the provider ---------------------------------------------------------------------------------------------------


class Provider:
    """An OpenID provider with the clients `shop` (a web page) and `machine`; olga is an officer."""

    def __init__(self, library: str, folder: Path, receiver: Receiver) -> None:
        self._library = library
        self._folder = folder
        self._receiver = receiver
        self._process: subprocess.Popen[bytes] | None = None
        self._keys = [new_key()]
        self._port = 0

    # What a tenant would configure. One provider, three audiences: machines, people and officers call as such.

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def login(self) -> Issuer:
        return self._issuer("login", PEOPLE, clients=(CLIENT,))

    @property
    def service(self) -> Issuer:
        return self._issuer("service", MACHINES, clients=(_MACHINE[0],), scopes=("check", "state"))

    @property
    def officer(self) -> Issuer:
        return self._issuer(
            "officer", OFFICE, roles={"privacy office": "admin"}, assurance={"admin": Assurance(amr=("mfa",))}
        )

    @property
    def issuers(self) -> tuple[Issuer, ...]:
        return self.login, self.service, self.officer

    def _issuer(self, kind: Any, audience: str, **more: Any) -> Issuer:
        return Issuer(issuer=self.url, kind=kind, audience=audience, jwks_uri=f"{self.url}/jwks", **more)

    # Tokens

    async def id_token(self, sub: str, nonce: str) -> str:
        """By authorisation code and PKCE, as the shop's web page would get it."""
        async with self._browser() as browser:
            return (await self._log_in(browser, sub, nonce=nonce))["id_token"]

    async def access_token(self, sub: str, audience: str = PEOPLE, scope: str = "check") -> str:
        """For a person, to call the API of `audience` (RFC 8707)."""
        async with self._browser() as browser:
            return (await self._log_in(browser, sub, scope=f"openid {scope}", resource=audience))["access_token"]

    async def machine_token(self, scope: str = "check", audience: str = MACHINES) -> str:
        """By client credentials."""
        form = {"grant_type": "client_credentials", "scope": scope, "resource": audience}
        async with self._browser() as browser:
            return _json(await browser.post("/token", data=form, auth=_MACHINE))["access_token"]

    async def logout_token(self, sub: str) -> str:
        """What the shop's server is sent by the provider when somebody logs out."""
        async with self._browser() as browser:
            tokens = await self._log_in(browser, sub, nonce=uuid.uuid4().hex)
            form = await browser.get("/session/end", params={"id_token_hint": tokens["id_token"]})
            (xsrf,) = re.findall(r'name="xsrf" value="([0-9a-f]+)"', form.text)
            await browser.post("/session/end/confirm", data={"xsrf": xsrf, "logout": "yes"})
        async with asyncio.timeout(_READY_S):
            return await self._receiver.tokens.get()

    @asynccontextmanager
    async def _browser(self) -> AsyncIterator[httpx.AsyncClient]:
        async with httpx.AsyncClient(base_url=self.url, timeout=_READY_S, trust_env=False) as browser:
            yield browser

    async def _log_in(self, browser: httpx.AsyncClient, sub: str, **params: str) -> dict[str, Any]:
        verifier = secrets.token_urlsafe(32)
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        asked = {
            "client_id": CLIENT, "response_type": "code", "redirect_uri": CALLBACK, "scope": "openid",
            "state": uuid.uuid4().hex, "login_hint": sub, "code_challenge": challenge, "code_challenge_method": "S256",
            **params,
        }  # fmt: skip
        answer = await browser.get("/auth", params=asked)
        for _ in range(8):  # to the login, back, to the consent, back
            if answer.headers.get("location", CALLBACK).startswith(CALLBACK):
                break
            answer = await browser.get(answer.headers["location"])
        came = parse_qs(urlsplit(answer.headers["location"]).query)
        assert came["state"] == [asked["state"]]
        form = {
            "grant_type": "authorization_code", "code": came["code"][0], "redirect_uri": CALLBACK, "client_id": CLIENT,
            "code_verifier": verifier, **{name: params[name] for name in ("resource",) if name in params},
        }  # fmt: skip
        return _json(await browser.post("/token", data=form))

    # Faults

    async def rotate(self, *, retire: bool = True) -> None:
        """Sign with a new key from now on: published beside the old one first; then, if `retire`, the old one goes."""
        self._keys = [new_key(), *self._keys]
        await self._publish()
        if retire:
            self._keys = self._keys[:1]
            await self._publish()

    async def _publish(self) -> None:
        async with self._browser() as browser:
            (await browser.post("/keys", json={"keys": self._keys})).raise_for_status()

    async def start(self) -> None:
        """With the keys and at the address it had before; nobody is logged in any more."""
        assert self._process is None
        ready, settings = self._folder / "ready.json", self._folder / "settings.json"
        ready.unlink(missing_ok=True)
        written = {
            "ready": str(ready), "port": self._port, "keys": self._keys, "audiences": [PEOPLE, MACHINES, OFFICE],
            "scope": _SCOPE, "logoutUri": self._receiver.uri,
        }  # fmt: skip
        settings.write_text(json.dumps(written))
        self._process = process = self._spawn(settings)
        deadline = time.monotonic() + _READY_S
        while not ready.exists():
            said_so_far = (self._folder / "said").read_text(errors="replace")[-2000:]
            assert process.poll() is None, f"it ended with {process.returncode}: {said_so_far}"
            assert time.monotonic() < deadline, f"not ready within {_READY_S} s: {said_so_far}"
            await asyncio.sleep(0.05)
        self._port = json.loads(ready.read_bytes())["port"]

    def _spawn(self, settings: Path) -> subprocess.Popen[bytes]:
        command = ["node", str(HERE / "provider.mjs"), self._library, str(settings)]
        with (self._folder / "said").open("ab") as said:
            return subprocess.Popen(
                command, cwd=self._folder, env={"PATH": os.environ["PATH"]},
                stdin=subprocess.PIPE, stdout=said, stderr=said,
            )  # fmt: skip

    async def stop(self) -> None:
        """As in an outage: nobody answers at its address."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        try:
            await asyncio.to_thread(process.wait, _STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()


def new_key() -> dict[str, Any]:
    """A private JWK under a new name."""
    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    numbers = {**RSAAlgorithm.to_jwk(private, as_dict=True), "use": "sig", "alg": "RS256", "kid": uuid.uuid4().hex}
    del numbers["key_ops"]  # `sign` alone; it would be published so, and a key for signing verifies nothing
    return numbers


def _json(answer: httpx.Response) -> dict[str, Any]:
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


class Receiver:
    """Stands for the shop's server, where the provider sends logout tokens."""

    def __init__(self) -> None:
        self.uri = ""
        self.tokens: asyncio.Queue[str] = asyncio.Queue()

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        size = re.search(r"(?i)content-length: ([0-9]+)", head)
        form = await reader.readexactly(int(size[1]) if size else 0)
        self.tokens.put_nowait(parse_qs(form.decode())["logout_token"][0])
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()
        await writer.wait_closed()


@pytest.fixture(scope="session")
async def provider(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    where, receiver = library(), Receiver()
    async with await asyncio.start_server(receiver.take, "127.0.0.1", 0) as server:
        receiver.uri = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/logout"
        made = Provider(where, tmp_path_factory.mktemp("provider"), receiver)
        try:
            await made.start()
            yield made
        finally:
            await made.stop()
