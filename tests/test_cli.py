"""The command line: what each command says, what it answers a program, and with which code it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from conftest import SECRET, Tenant
from demos import CONSENT, Demo, clean_environment, new_place, processes, running, within

from consent_service import __version__, cli, db
from consent_service.ledger import container, note
from consent_service.policies import find


@pytest.fixture
def bare() -> Iterator[Path]:
    with new_place() as folder:
        yield folder


def consent(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end in the folder."""
    return subprocess.run(
        [CONSENT, *arguments], check=False, capture_output=True, text=True, cwd=folder, timeout=60,
        env=clean_environment() | environment, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def commands(group: click.Group, *above: str) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*above, name)
        if isinstance(command, click.Group):
            yield from commands(command, *above, name)


COMMANDS = [(), *commands(cli.consent)]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_help(command: tuple[str, ...]):
    for flag in ("--help", "-h"):
        helped = CliRunner().invoke(cli.consent, [*command, flag], prog_name="consent")
        assert helped.exit_code == 0
        assert helped.stdout.startswith(" ".join(["Usage: consent", *command]))
    found: Any = cli.consent
    for name in command:
        found = found.commands[name]
    assert found.help
    assert isinstance(found, click.Group) or any("--json" in option.opts for option in found.params)


def test_the_installed_command_is_this_one(bare: Path):
    helped = consent(bare, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert all(name in helped.stdout for name in cli.consent.commands)
    assert __version__ in consent(bare, "--version").stdout


@pytest.mark.parametrize(
    "wrong",
    [["nothing"], ["demo", "--nothing"], ["demo", "--port", "many"], ["policy", "plan"], ["policy", "nothing"]],
    ids=" ".join,
)
def test_wrong_usage_is_2(bare: Path, wrong: list[str]):
    done = consent(bare, *wrong)
    assert done.returncode == 2
    assert "Usage: consent" in done.stderr
    assert done.stdout == ""
    assert list(bare.iterdir()) == []


def test_the_openapi_file_is_json(bare: Path):
    for more in ([], ["--json"]):
        assert json.loads(consent(bare, "openapi", *more).stdout)["openapi"].startswith("3.")


# Settings


def test_wrong_settings_are_all_named_with_their_origin(bare: Path):
    (bare / "consent.toml").write_text('pool = 1\nlog_level = "loud"\nuncle = "Bob"\nworkers = "two"\n')
    done = consent(bare, "serve", "--port", "70000", CONSENT_STOP_S="soon", CONSENT_SECRET="short", DATABASE_URL="x")
    assert done.returncode == 2
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    for origin, name in (
        ("consent.toml", "pool"), ("consent.toml", "log_level"), ("consent.toml", "uncle"),
        ("consent.toml", "workers"), ("--port", "port"), ("CONSENT_STOP_S", "stop_s"), ("CONSENT_SECRET", "secret"),
    ):  # fmt: skip
        assert f"\n  {origin}: {name} " in done.stderr, (origin, name, done.stderr)
    assert "short" not in done.stderr.replace("shorter", "")  # no value of a secret is repeated
    assert [entry.name for entry in bare.iterdir()] == ["consent.toml"]


def test_what_is_missing_is_said_together_with_what_is_wrong(bare: Path):
    url = "postgresql://nobody@127.0.0.1:1/none"
    done = consent(bare, "serve", DATABASE_URL=url, CONSENT_PORT="many", CONSENT_WORKERS="0")
    assert done.returncode == 2
    assert "CONSENT_SECRET is missing" in done.stderr
    assert "CONSENT_PORT: port " in done.stderr
    assert "CONSENT_WORKERS: workers " in done.stderr
    only = consent(bare, "serve", "--json", DATABASE_URL=url)
    assert only.returncode == 2
    assert "CONSENT_SECRET is missing" in json.loads(only.stdout)["error"]
    assert "Traceback" not in done.stderr + only.stderr


def test_the_command_line_wins_over_the_environment_over_the_file(bare: Path):
    (bare / "consent.toml").write_text('host = "999.0.0.1"\nworkers = 0\nport = -1\n')
    done = consent(bare, "serve", "--port", "70000", CONSENT_WORKERS="99", CONSENT_PORT="80000")
    assert done.returncode == 2
    assert "--port: port " in done.stderr
    assert "CONSENT_WORKERS: workers " in done.stderr
    assert "CONSENT_PORT" not in done.stderr


@pytest.mark.parametrize("text", [b"port = ", b"\xff\xfe", b"port = 1\nport = 2"])
def test_a_file_that_cannot_be_read_is_said(bare: Path, text: bytes):
    (bare / "consent.toml").write_bytes(text)
    done = consent(bare, "serve")
    assert done.returncode == 2
    assert "consent.toml cannot be read" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("command", "url"),
    [
        ("serve --port 0", "postgresql://nobody@127.0.0.1:1/none"),
        ("policy plan demo", "postgresql://nobody@127.0.0.1:1/none"),
        ("migrate", "no address at all"),
        ("migrate", "postgresql://x@/x?host=/nowhere"),
        ("migrate", "mysql://x"),
        ("migrate", "postgresql://x@127.0.0.1:70000/x"),
    ],
)
def test_a_database_that_is_not_there_is_2(bare: Path, command: str, url: str):
    done = consent(bare, *command.split(), DATABASE_URL=url, CONSENT_SECRET="s" * 40)
    assert done.returncode == 2
    assert "DATABASE_URL" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "given", "said"),
    [
        (("--data", ""), {}, "--data: data "),
        ((), {"CONSENT_POOL": "9" * 5_000}, "CONSENT_POOL: pool "),
        ((), {"CONSENT_SECRET": "s" * 40 + "\udcff"}, "CONSENT_SECRET: is not UTF-8"),
        (("--ready-file", ""), {}, "ready file"),
    ],
)
def test_odd_settings_are_refused_before_anything_is_made(
    bare: Path, options: tuple[str, ...], given: dict[str, str], said: str
):
    done = consent(bare, "demo", "--port", "0", *options, **given)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert list(bare.iterdir()) == []


# Starting


@pytest.mark.parametrize("kept", [None, b"", b"too short", b"\xff" * 40, b"x" * 64])
def test_another_root_secret_is_refused_and_nothing_is_forgotten(place: Path, kept: bytes | None):
    file = place / "data" / "secret"
    secret = file.read_bytes()
    file.unlink()
    if kept is not None:
        file.write_bytes(kept)
    for command in (("serve", "--port", "0"), ("key", "list", "--tenant", "demo")):
        done = consent(place, *command, "--data", "data")
        assert (done.returncode, done.stdout) == (2, "")
        assert "secret" in done.stderr
        assert "Traceback" not in done.stderr
    file.write_bytes(secret)
    assert consent(place, "key", "list", "--tenant", "demo", "--data", "data").returncode == 0


def test_keys_of_the_demo_that_cannot_be_read_are_said(place: Path):
    (place / "data" / "keys.json").write_text("{")
    done = consent(place, "demo", "--port", "0", "--data", "data")
    assert (done.returncode, "Move it away" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_an_output_that_cannot_be_written_is_said(place: Path):
    with Path("/dev/full").open("w", encoding="ascii") as full:
        done = subprocess.run(
            [CONSENT, "key", "list", "--tenant", "demo", "--data", "data"],
            cwd=place, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, "cannot be written" in done.stderr, "Traceback" in done.stderr) == (2, True, False)


def test_a_taken_port_is_said_at_once_and_leaves_nothing(bare: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        began = time.monotonic()
        done = consent(bare, "demo", "--port", str(port), "--data", "data", "--ready-file", "ready")
        assert time.monotonic() - began < 10
    assert done.returncode == 2
    assert f"Port {port} on 127.0.0.1 cannot be used" in done.stderr
    assert "--port" in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    assert not processes(bare)
    assert not (bare / "ready").exists()


@pytest.mark.parametrize("host", ["999.1.1.1", "no.such.host.invalid", "203.0.113.7", "ü" * 70, "::g"])
def test_an_address_that_is_not_ours_is_2(bare: Path, host: str):
    done = consent(bare, "demo", "--port", "0", "--host", host, "--data", "data")
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert not processes(bare)


@pytest.mark.parametrize(
    "data", ["/proc/none", "/dev/null", "/dev/null/data", "file", "d" * 300, "/sys/none", "\udcff\udcfe/" + "x" * 300]
)
def test_a_data_folder_that_cannot_be_is_2(bare: Path, data: str):
    (bare / "file").touch()
    done = consent(bare, "demo", "--port", "0", "--data", data)
    assert done.returncode == 2, done.stderr
    assert "--data" in done.stderr
    assert "Traceback" not in done.stderr
    assert not processes(bare)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_data_folder_that_may_not_be_written_is_2(bare: Path):
    (bare / "locked").mkdir(mode=0o500)
    done = consent(bare, "demo", "--port", "0", "--data", "locked/data")
    assert done.returncode == 2
    assert "--data" in done.stderr


@pytest.mark.parametrize("file", ["nowhere/ready", "data", "/proc/ready", "file/ready"])
def test_a_ready_file_that_cannot_be_written_is_2(place: Path, file: str):
    (place / "file").touch()
    done = consent(place, "demo", "--port", "0", "--data", "data", "--ready-file", file)
    assert done.returncode == 2, done.stderr
    assert "ready file" in done.stderr
    assert "Traceback" not in done.stderr
    assert not processes(place)


def test_the_ready_file_of_an_earlier_run_is_never_taken_for_this_one(place: Path):
    with running(place) as demo:
        kept = demo.ready_file.read_bytes()
        assert json.loads(kept)["pid"] == demo.pid
        assert oct(demo.ready_file.stat().st_mode & 0o777) == "0o600"
    stale = place / "stale.json"
    stale.write_bytes(kept)
    again = Demo(place, "--ready-file", str(stale))  # the last one counts
    try:
        assert within(20, lambda: not stale.exists())
        assert within(20, stale.exists)
        assert json.loads(stale.read_bytes())["pid"] == again.pid
    finally:
        assert again.stop() == 0


def test_demo_prints_one_json_object(place: Path):
    with running(place, "--json") as demo:
        facts = next(json.loads(line) for line in demo.said().splitlines() if line.startswith('{"url"'))
        assert facts == demo.facts
        assert set(facts) == {"url", "tenant", "keys", "pid"}
        assert set(facts["keys"]) == {"service", "publishable", "dpo"}
        assert facts["tenant"] == "demo"
        assert facts["pid"] == demo.pid


def test_serve_and_demo_on_a_database_of_ones_own(place: Path):
    with running(place) as owner:
        given = {"DATABASE_URL": owner.database_url(), "CONSENT_SECRET": (place / "data" / "secret").read_text()}
        given["CONSENT_KEY_FILE"] = str(place / "data" / "key-encryption-keys")
        with running(place, data=place / "none", command="serve", environment=given) as other:
            assert other.facts["keys"] == {}
            other.facts["keys"] = owner.keys
            with owner.client() as one, other.client() as two:
                assert one.record("ada").status == 201
                assert two.check("ada").allow == (True, "consent")
            assert not (place / "none").exists()
        with running(place, data=place / "other", environment=given) as demo, demo.client() as client:
            assert client.check("ada").allow == (True, "consent")
            assert not (place / "other" / "pg").exists()


# The database and policies


def test_migrate_brings_forward_once(bare: Path):
    names = [name for name, _ in db.migrations().values()]
    first = consent(bare, "migrate", "--json")
    assert (first.returncode, json.loads(first.stdout)) == (0, {"applied": names}), first.stderr
    again = consent(bare, "migrate", "--json")
    assert (again.returncode, json.loads(again.stdout)) == (0, {"applied": []})
    assert consent(bare, "migrate").stdout == "The schema is up to date.\n"
    assert not processes(bare)


def edit(folder: Path, file: str, old: str, new: str) -> None:
    path = folder / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def spoiled(place: Path) -> Path:
    return Path(shutil.copytree(find("demo"), place / "policy"))


def test_lint_good_and_bad(bare: Path):
    good = consent(bare, "policy", "lint", "demo", "--json")
    assert good.returncode == 0
    assert json.loads(good.stdout)["purposes"] == 14
    assert consent(bare, "policy", "lint", "demo").stdout == "demo: 14 purposes, 4 notices, no errors.\n"
    folder = spoiled(bare)
    edit(folder, "purposes/analytics.toml", 'channels = ["web", "app"]', 'channels = ["web", "ape"]')
    edit(folder, "purposes/profiling.toml", "legal_basis", "legal_bases")
    for more in ([], ["--json"]):
        bad = consent(bare, "policy", "lint", "policy", *more)
        assert bad.returncode == 1
        assert "analytics.toml" in bad.stderr
        assert "profiling.toml" in bad.stderr
        assert "Traceback" not in bad.stderr
    told = json.loads(bad.stdout)
    assert len(told["errors"]) >= 2
    assert all({"pointer", "detail"} == set(error) for error in told["errors"])
    missing = consent(bare, "policy", "lint", "nowhere")
    assert missing.returncode == 1
    assert "`demo`" in missing.stderr


def test_plan_and_apply_say_in_words_what_changes_and_whom_it_touches(place: Path):
    folder = spoiled(place)
    with running(place) as demo, demo.client() as client:
        for number in range(3):
            assert client.record(f"person-{number}").status == 201
        same = consent(place, "policy", "plan", "policy", "--data", "data")
        assert (same.returncode, same.stdout) == (0, "Nothing changes; version 1 is in force.\n"), same.stderr

        edit(folder, "purposes/marketing.email.toml", 'valid_for = "P24M"', 'valid_for = "P12M"')
        planned = consent(place, "policy", "plan", "policy", "--data", "data")
        assert planned.returncode == 0
        assert "purpose marketing.email" in planned.stdout
        assert "3 subjects" in planned.stdout
        told = json.loads(consent(place, "policy", "plan", "policy", "--data", "data", "--json").stdout)
        assert told["version"] == 1
        assert [c["subjects"] for c in told["changes"] if c["what"] == "purpose marketing.email"] == [3]
        assert [change["kind"] for change in told["changes"]] == ["changed"]
        assert json.loads(consent(place, "policy", "plan", "policy", "--data", "data", "--json").stdout) == told

        applied = consent(place, "policy", "apply", "policy", "--data", "data")
        assert (applied.returncode, applied.stdout) == (0, planned.stdout), applied.stderr
        assert client.check("person-0").body["policy"] == 2
        assert client.record("person-9").status == 201
        again = consent(place, "policy", "apply", "policy", "--data", "data")
        assert (again.returncode, again.stdout) == (0, "Nothing changes; version 2 is in force.\n")


def test_a_change_of_what_people_were_shown_is_refused(place: Path):
    folder = spoiled(place)
    edit(folder, "notices/web-banner/1/notice.toml", "First version.", "The first version.")
    for command in ("plan", "apply"):
        for more in ([], ["--json"]):
            done = consent(place, "policy", command, "policy", "--data", "data", *more)
            assert done.returncode == 1, done.stderr
            assert "web-banner" in done.stdout + done.stderr
            assert "Traceback" not in done.stderr
            if more:
                json.loads(done.stdout)
    done = consent(place, "policy", "plan", "demo", "--data", "data")
    assert done.stdout == "Nothing changes; version 1 is in force.\n"  # the refused one left nothing
    assert not processes(place)


def test_the_first_plan_of_a_tenant_makes_nothing_of_it(place: Path):
    folder = spoiled(place)
    edit(folder, "tenant.toml", 'id = "demo"', 'id = "kestrel"')
    edit(folder, "tenant.toml", "consent.falke.example/de", "consent.kestrel.example")
    for _ in range(2):
        planned = consent(place, "policy", "plan", "policy", "--data", "data")
        assert planned.returncode == 0, planned.stderr
        assert "tenant kestrel is added" in planned.stdout
    assert consent(place, "policy", "apply", "policy", "--data", "data").returncode == 0
    assert "Nothing changes" in consent(place, "policy", "plan", "policy", "--data", "data").stdout


# Keys


class Console:
    """Runs `consent key …` for one tenant of the session's database."""

    def __init__(self, folder: Path, database_url: str, tenant: Tenant) -> None:
        self._folder = folder
        self._given = {"DATABASE_URL": database_url, "CONSENT_SECRET": SECRET}
        self.tenant = tenant

    async def run(self, command: str, *more: str, slug: str | None = None) -> subprocess.CompletedProcess[str]:
        arguments = ["key", *command.split(), *more, "--tenant", slug or self.tenant.slug]
        done = await asyncio.to_thread(consent, self._folder, *arguments, **self._given)
        assert "Traceback" not in done.stderr
        return done

    async def told(self, command: str, *more: str) -> Any:
        done = await self.run(command, *more, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert len(done.stdout.splitlines()) == 1
        return json.loads(done.stdout)

    async def status(self, key: str) -> int:
        body = b'{"subject": {"type": "login", "id": "ada"}, "purpose": "marketing.email"}'
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        return (await self.tenant.http.post("/v1/check", content=body, headers=headers)).status_code


@pytest.fixture
def console(bare: Path, database_url: str, tenant: Tenant) -> Console:
    return Console(bare, database_url, tenant)


SHOP = ("--kind", "service", "--name", "The shop", "--id", "shop", "--scope", "check")


async def test_a_key_is_printed_once(console: Console):
    done = await console.run("create", *SHOP)
    assert done.returncode == 0, done.stderr
    key, sentence = done.stdout.splitlines()
    assert re.fullmatch(rf"sk_{console.tenant.log_id}_shop_[\w-]{{43}}", key)
    assert "shown now and never again" in sentence
    assert await console.status(key) == 200
    for more in ([], ["--json"]):
        listed = await console.run("list", *more)
        assert "shop" in listed.stdout
        assert key[-43:] not in listed.stdout + listed.stderr


async def test_a_key_for_programs(console: Console):
    told = await console.told(
        "create", "--kind", "publishable", "--name", "Pages", "--scope", "write:device",
        "--origin", "https://shop.example", "--origin", "http://localhost:3000", "--rate", "20",
    )  # fmt: skip
    key = told.pop("key")
    assert key.startswith(f"pk_{console.tenant.log_id}_{told['id']}_")
    assert re.fullmatch(r"publishable-[0-9a-f]{8}", told.pop("id"))
    assert told.pop("created_at").endswith("Z")
    assert told == {
        "tenant": console.tenant.slug, "kind": "publishable", "name": "Pages", "scopes": ["write:device"],
        "origins": ["http://localhost:3000", "https://shop.example"], "rate": 20, "secrets": 1,
        "last_used_at": None, "revoked_at": None,
    }  # fmt: skip
    assert (await console.told("create", "--kind", "officer", "--name", "O", "--role", "viewer"))["scopes"] == [
        "events", "state",
    ]  # fmt: skip
    app_only = await console.told(
        "create", "--kind", "publishable", "--name", "A", "--scope", "write:device", "--no-origin"
    )
    assert app_only["origins"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--kind service --name x --scope chekc", "chekc"),
        ("--kind service --name x", "--scope"),
        ("--kind officer --name x", "--role"),
        ("--kind service --scope check", "--name"),
        ("--name x --scope check", "--kind"),
        ("--kind person --name x --scope check", "person"),
        ("--kind service --name x --role admin", "--role"),
        ("--kind officer --name x --role admin --scope state", "--role"),
        ("--kind officer --name x --role king", "king"),
        ("--kind publishable --name x --scope write:device", "--origin"),
        ("--kind publishable --name x --scope write:device --no-origin --origin https://a.example", "--no-origin"),
        ("--kind service --name x --scope check --no-origin", "--no-origin"),
        ("--kind service --name x --scope check --rate many", "--rate"),
        ("--replace shop --rate 0", "--replace"),
        ("--replace shop --id other", "--replace"),
        ("--replace shop --scope check", "--replace"),
        ("--replace shop --no-origin", "--replace"),
        ("--replace shop --kind service", "--replace"),
    ],
)
def test_wrong_usage_of_key_create_is_2(options: str, words: str):
    done = CliRunner().invoke(cli.consent, ["key", "create", "--tenant", "demo", *options.split()])
    assert (done.exit_code, done.stdout) == (2, "")
    assert words in done.stderr.rpartition("Error:")[2]


def test_a_key_belongs_to_a_tenant(bare: Path):
    for command in (("create", *SHOP), ("list",), ("revoke", "shop")):
        done = consent(bare, "key", *command)
        assert (done.returncode, done.stdout) == (2, "")
        assert "--tenant" in done.stderr


def test_an_unsound_key_is_refused_with_all_that_is_wrong_before_anything_is_started(bare: Path):
    command = ["key", "create", "--tenant", "demo", "--kind", "publishable", "--name", "x", "--scope", "export"]
    done = consent(bare, *command, "--id", "No", "--rate", "0", "--origin", "https://*.example", "--json")
    assert done.returncode == 1
    assert {error["pointer"] for error in json.loads(done.stdout)["errors"]} == {"/id", "/rate", "/scopes", "/origins"}
    assert "https://*.example" in done.stderr
    assert list(bare.iterdir()) == []


async def test_what_is_not_there_or_taken_is_refused(console: Console):
    await console.told("create", *SHOP)
    for command, words in (
        (("create", *SHOP), "is taken"),
        (("create", "--replace", "nobody"), "no key with that id"),
        (("create", "--replace", "\udcff"), "no key with that id"),
        (("revoke", "nobody"), "no key with that id"),
        (("revoke", "nobody", "--old"), "no key with that id"),
        (("revoke", "shop", "--old"), "one key only"),
    ):
        done = await console.run(*command, "--json")
        assert done.returncode == 1, command
        assert words in done.stderr
        assert words in json.loads(done.stdout)["error"]
    for slug in ("nobody", "\udcff"):
        for command in (("create", *SHOP), ("create", "--replace", "shop"), ("list",), ("revoke", "shop")):
            done = await console.run(*command, slug=slug)
            assert (done.returncode, done.stdout) == (1, "")
            assert "no such tenant" in done.stderr


async def test_rotation_and_revocation_by_hand(console: Console):
    old = (await console.told("create", *SHOP))["key"]
    assert await console.status(old) == 200
    done = await console.run("create", "--replace", "shop")
    assert done.returncode == 0, done.stderr
    new, _, advice = done.stdout.splitlines()
    assert f"consent key revoke --tenant {console.tenant.slug} --old shop" in advice
    assert [await console.status(key) for key in (old, new)] == [200, 200]
    third = await console.run("create", "--replace", "shop")
    assert (third.returncode, third.stdout) == (1, "")
    assert "--old" in third.stderr

    ended = await console.run("revoke", "shop", "--old")
    assert ended.returncode == 0
    assert "within 1 s" in ended.stdout
    await asyncio.sleep(1)
    assert [await console.status(key) for key in (old, new)] == [401, 200]
    told = await console.told("revoke", "shop")
    assert (told["done"], told["obeyed_within_s"], told["secrets"]) == (True, 1, 1)
    await asyncio.sleep(1)
    assert await console.status(new) == 401
    again = await console.told("revoke", "shop")
    assert (again["done"], again["revoked_at"]) == (False, told["revoked_at"])
    said = await console.run("revoke", "shop")
    assert (said.returncode, "revoked already" in said.stdout) == (0, True)
    for command in (("create", "--replace", "shop"), ("revoke", "shop", "--old")):
        done = await console.run(*command)
        assert (done.returncode, done.stdout) == (1, "")
        assert "was revoked on" in done.stderr
    assert "within 1 s" in consent(Path("/"), "key", "revoke", "--help").stdout


async def test_the_list_is_aligned_and_told_to_programs(console: Console):
    key = (await console.told("create", *SHOP, "--rate", "7"))["key"]
    await console.told("create", "--replace", "shop")
    assert await console.status(key) == 200
    await asyncio.sleep(0.2)  # its use is written behind the answer's back
    lines = (await console.run("list")).stdout.splitlines()
    titles = ("ID", "KIND", "NAME", "SCOPES", "ORIGINS", "RATE", "CREATED", "LAST USED", "SECRETS", "REVOKED")
    starts = [lines[0].index(title) for title in titles]
    assert len(lines) == 1 + 4
    for line in lines[1:]:
        assert all(line[start] != " " and line[start - 1] == " " for start in starts[1:])
    cells = [lines[-1][start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)]
    assert cells[:6] == ["shop", "service", "The shop", "check", "-", "7"]
    assert cells[8:] == ["2", "-"]
    shop = (await console.told("list"))[-1]
    assert list(shop) == [
        "id", "kind", "name", "scopes", "origins", "rate", "created_at", "last_used_at", "secrets", "revoked_at",
    ]  # fmt: skip
    assert shop["last_used_at"] > shop["created_at"]


def test_keys_without_the_secret_are_refused(bare: Path):
    url = "postgresql://nobody@127.0.0.1:1/none"
    for command in (("create", *SHOP), ("list",), ("revoke", "shop")):
        done = consent(bare, "key", *command, "--tenant", "demo", DATABASE_URL=url)
        assert (done.returncode, done.stdout) == (2, "")
        assert "CONSENT_SECRET is missing" in done.stderr


def test_a_restart_of_the_demo_undoes_neither_rotation_nor_revocation(place: Path):
    def key(*arguments: str) -> Any:
        done = consent(place, "key", *arguments, "--tenant", "demo", "--data", "data", "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def statuses(*keys: str, told: bool = True) -> list[int]:
        with running(place) as demo:
            assert demo.keys.get("service") == (old if told else None), "a key that is refused is not told"
            demo.facts["keys"] = {key: key for key in keys}
            body = {"subject": {"type": "login", "id": "ada"}, "purpose": "marketing.email"}
            with demo.client() as client:
                return [client.call("POST", "/v1/check", body, key=name).status for name in demo.keys]

    with running(place) as demo, demo.client() as client:
        old = demo.keys["service"]
        new = key("create", "--replace", "service")["key"]  # while it serves
        assert client.check("ada").status == 200
    assert statuses(old, new) == [200, 200]
    key("revoke", "service", "--old")
    assert statuses(old, new, told=False) == [401, 200]
    key("revoke", "service")
    assert statuses(old, new, told=False) == [401, 401]
    assert [one["id"] for one in key("list") if one["revoked_at"]] == ["service"]


# The ledger


def test_a_receipt_is_verified_by_whoever_has_it_and_the_key(place: Path):
    with running(place) as demo, demo.client() as client:
        text = client.record("ada").body["receipt"]
        (place / "receipt.tlog-proof").write_text(text)
        withdrawn = {"subject": {"type": "login", "id": "ada"}, "records": [{"purpose": "*", "status": "withdrawn"}]}
        (place / "no.tlog-proof").write_text(client.call("POST", "/v1/consents", withdrawn).body["receipt"])
    status = json.loads(consent(place, "ledger", "status", "--tenant", "demo", "--data", "data", "--json").stdout)
    assert (status["origin"], status["frozen"]) == ("localhost/demo", None)
    last = status["size"] - 1
    """The withdrawal; before it the consent, and before that what the start of the demo did."""
    (key,) = status["keys"]
    assert key in consent(place, "ledger", "status", "--tenant", "demo", "--data", "data").stdout
    shutil.rmtree(place / "data")  # nothing of the service is needed
    for name, said in (("receipt", "given"), ("no", "withdrawn")):
        done = consent(place, "verify", f"{name}.tlog-proof", "--key", key, "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert (found["genuine"], found["payload"]["records"][0]["status"]) == (True, said)
    told = consent(place, "verify", "receipt.tlog-proof", "--key", key).stdout
    assert told.startswith(f"Genuine: entry {last - 1} of the ledger localhost/demo, which had {last} entries then")
    verify = ("verify", "receipt.tlog-proof", "--key", key, "--policy")
    worded = consent(place, *verify, "demo", "--language", "de").stdout
    assert worded.startswith(told.rstrip())
    assert "Beleg über Ihre Entscheidung" in worded
    assert f"Eintrag: {last - 1}\n" in worded
    facts = json.loads(consent(place, *verify, "demo", "--json").stdout)
    assert facts["record"]["@type"] == "dpv:ConsentReceipt"
    assert facts["text"].startswith("Receipt for your decision")
    other = consent(place, *verify, "demo-at")
    assert (other.returncode, "is not the one that it names (version 1)" in other.stderr) == (2, True)
    (place / "trusted").write_text(f"# ours\nlog {key}\nquorum none\n")
    assert consent(place, "verify", "receipt.tlog-proof", "--trust", "trusted").returncode == 0


def test_a_checkpoint_is_a_note_that_the_key_signed(place: Path):
    printed = consent(place, "ledger", "checkpoint", "--tenant", "demo", "--data", "data").stdout
    status = json.loads(consent(place, "ledger", "status", "--tenant", "demo", "--data", "data", "--json").stdout)
    signed = note.read(printed, [note.Verifier.parse(key) for key in status["keys"]])
    found = note.Checkpoint.parse(signed.text)
    assert (found.origin, found.size, found.root.hex()) == ("localhost/demo", status["size"], status["root"])


def test_what_is_falsified_is_1_and_whom_nobody_can_trust_2(bare: Path):
    log = note.Signer("consent.example/demo", bytes(32))
    (bare / "empty").write_text("")
    (bare / "binary").write_bytes(bytes(range(256)))
    (bare / "stranger").write_bytes(
        b"log " + str(log.verifier).encode().replace(b"demo", b"dem\xff") + b"\nquorum none\n"
    )
    for name in ("empty", "binary"):
        done = consent(bare, "verify", name, "--key", str(log.verifier))
        assert (done.returncode, done.stdout.startswith("Falsified"), "Traceback" in done.stderr) == (1, True, False)
        refused = json.loads(consent(bare, "verify", name, "--key", str(log.verifier), "--json").stdout)
        assert (refused["genuine"], bool(refused["why"])) == (False, True)
    for wrong in (
        (),
        ("--key", "no key"),
        ("--trust", "empty"),
        ("--key", str(log.verifier), "--trust", "empty"),
        ("--trust", "stranger"),
        ("--key", "h\udcff+00000000+AAAA"),
        ("--key", str(log.verifier), "--policy", "none"),
    ):
        done = consent(bare, "verify", "empty", *wrong)
        assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert consent(bare, "verify", "nothing", "--key", str(log.verifier)).returncode == 2


def test_an_option_of_verify_that_would_do_nothing_is_2(bare: Path):
    key = str(note.Signer("consent.example/demo", bytes(32)).verifier)
    (bare / "receipt").write_text("")
    (bare / "export").write_bytes(container.MAGIC)
    for file, options, words in (
        ("export", ("--policy", "demo"), "this is an export"),
        ("export", ("--language", "de"), "name its folder too"),
        ("receipt", ("--language", "de"), "name its folder too"),
        ("receipt", ("--policy", "demo", "--language", "fr"), "no words in the language 'fr': take one of de, en."),
        ("receipt", ("--policy", "demo", "--language", "German"), "take one of de, en."),
    ):
        done = consent(bare, "verify", file, "--key", key, *options)
        assert (done.returncode, done.stdout, words in " ".join(done.stderr.split())) == (2, "", True), done.stderr


def test_an_export_is_written_and_verified_by_whoever_has_the_file_and_the_key(place: Path):
    with running(place) as demo, demo.client() as client:
        for name in ("ada", "bob"):
            assert client.record(name).status == 201
    at_home = ("--tenant", "demo", "--data", "data")
    status = json.loads(consent(place, "ledger", "status", *at_home, "--json").stdout)
    done = consent(place, "ledger", "export", *at_home, "--output", "all.zip", "--json")
    assert (done.returncode, done.stderr) == (0, ""), "a bar is for terminals"
    made = json.loads(done.stdout)
    assert (made["first"], made["end"]) == (0, status["size"])
    said = consent(place, "ledger", "export", *at_home, "--output", "ada.zip", "--subject", "login:ada").stdout
    assert "consent verify ada.zip" in said
    wrong = consent(place, "ledger", "export", *at_home, "--output", "x.zip", "--purpose", "rubbish", "--from", "today")
    assert (wrong.returncode, "--from" in wrong.stderr) == (2, True)
    for option in ("--subject", "--from", "--until"):  # as of a variable that is not set: not everybody instead
        empty = consent(place, "ledger", "export", *at_home, "--output", "x.zip", option, "")
        assert (empty.returncode, option in empty.stderr) == (2, True)
    (place / "link.zip").symlink_to("target")
    linked = consent(place, "ledger", "export", *at_home, "--output", "link.zip")
    assert (linked.returncode, "no file of its own" in linked.stderr) == (2, True)
    unasked = consent(place, "ledger", "recover", *at_home, "--json")
    assert (unasked.returncode, "--yes" in unasked.stderr) == (2, True)
    nowhere = consent(place, "ledger", "export", *at_home, "--output", "no/such/x.zip")
    assert (nowhere.returncode, "Traceback" in nowhere.stderr) == (2, False)
    assert not [file for file in place.iterdir() if "x.zip" in file.name], "nothing is left of what failed"
    shutil.rmtree(place / "data")
    for file, events in (("all.zip", 2), ("ada.zip", 1)):
        checked = consent(place, "verify", file, "--key", *status["keys"], "--json")
        found = json.loads(checked.stdout)
        assert (checked.returncode, found["genuine"], found["trusted"]) == (0, True, True)
        assert found["manifest"]["counts"]["opened"] == events
    alone = consent(place, "verify", "all.zip")
    assert (alone.returncode, status["keys"][0] in alone.stdout) == (0, True)
    assert alone.stdout.startswith("NOT CHECKED whose it is")
    facts = json.loads(consent(place, "verify", "all.zip", "--json").stdout)
    assert (facts["genuine"], facts["consistent"], facts["trusted"]) == (False, True, False)
    stranger = str(note.Signer("localhost/demo", bytes(32)).verifier)
    assert "signature" in consent(place, "verify", "all.zip", "--key", stranger).stdout
    raw = (place / "all.zip").read_bytes()
    (place / "cut.zip").write_bytes(raw[:-100])
    cut = consent(place, "verify", "cut.zip", "--key", *status["keys"])
    assert (cut.returncode, "truncated" in cut.stdout, "Traceback" in cut.stderr) == (1, True, False)
    piped = consent(place, "verify", "-", "--key", *status["keys"])
    assert (piped.returncode, "Traceback" in piped.stderr) == (1, False), "nothing came"
