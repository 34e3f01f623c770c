"""What is erased is gone from the disk as well, once a purge has run: looked for in every byte of every file."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import threading
import uuid
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from demos import CONSENT, Client, Demo, act, running, subject

from consent_service.errors import SetupError
from consent_service.vault import alone


def holding(folder: Path, what: bytes) -> set[str]:
    """The files that contain some bytes."""
    found = set()
    for file in folder.rglob("*"):
        if file.is_file() and not file.is_symlink() and what in file.read_bytes():
            found.add(file.relative_to(folder).parts[2] if "pg" in file.parts else file.name)
    return found


async def wrapped(demo: Demo) -> list[bytes]:
    connection = await asyncpg.connect(demo.database_url())
    try:
        return [row["key"] for row in await connection.fetch("SELECT key FROM strand ORDER BY identifier, tenure")]
    finally:
        await connection.close()


def flushed(demo: Demo) -> None:
    """What lies in memory lies on the disk."""

    async def checkpoint() -> None:
        connection = await asyncpg.connect(demo.database_url().replace("consent@", "postgres@"))
        await connection.execute("CHECKPOINT")
        await connection.close()

    asyncio.run(checkpoint())


def purge(place: Path) -> dict[str, Any]:
    done = subprocess.run([CONSENT, "purge", "--data", str(place / "data"), "--json"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def erase(client: Client, who: str) -> dict[str, Any]:
    answer = client.call("POST", "/v1/subjects/erase", {"subject": subject(who)}, key="dpo")
    assert answer.status == 200, answer
    return dict(answer.body)


def test_after_a_purge_no_file_holds_anything_of_an_erased_person(place: Path) -> None:
    who, word = f"victim-{uuid.uuid4().hex}", f"said-{uuid.uuid4().hex}"
    with running(place) as demo, demo.client() as client:
        assert client.record("bystander").status == 201
        before = set(asyncio.run(wrapped(demo)))
        address = f"{uuid.uuid4().hex}@shop.example"
        mail = {"purpose": "marketing.email", "status": "given", "contact": address}
        body = {**act(who, "given"), "records": [mail], "evidence": {"said": word}}
        assert client.call("POST", "/v1/consents", body).status == 201
        (key,) = set(asyncio.run(wrapped(demo))) - before
        secrets = [text.encode() for text in (who, word, address)]
        flushed(demo)
        assert holding(place, key) >= {"base", "pg_wal"}, "control: the key's bytes can be found"
        assert [holding(place, secret) for secret in secrets] == [set()] * 3, "nothing ever lies there in the clear"

        assert erase(client, who)["events"] == 1
        flushed(demo)
        assert holding(place, key) != set(), "control: erased in the database, and still in its files"
        journal = place / "data" / "anchor" / "demo.erasures"
        assert len(journal.read_text().splitlines()) == 1, "whoever restores an older copy has to know"
        done = purge(place)
        assert (done["orders"], journal.read_text()) == (1, ""), "no older copy can be read any more"
        assert done["rewrapped"] >= 1
        assert done["turned"]
        assert holding(place, key) == set()
        old = before & set(asyncio.run(wrapped(demo)))
        assert old == set(), "every key is wrapped anew"
        assert client.check("bystander").allow == (True, "consent")
        assert len(client.history("bystander")) == 1, "and opens what it sealed"
        assert client.record(who, "withdrawn").status == 201
        assert demo.stop() == 0, demo.said()
    for secret in (*secrets[1:], key):
        assert holding(place, secret) == set()


def test_a_backup_of_before_opens_nothing_and_is_refused(place: Path) -> None:
    kept = (place / "data" / "key-encryption-keys").read_text()
    with running(place) as demo, demo.client() as client:
        assert client.record("ada").status == 201
        assert demo.stop() == 0
    subprocess.run(["cp", "-a", place / "data" / "pg", place / "old"], check=True)
    assert purge(place)["turned"]
    new = (place / "data" / "key-encryption-keys").read_text()
    assert new != kept
    assert len(new.split()) == 1
    subprocess.run(["rm", "-r", place / "data" / "pg"], check=True)
    subprocess.run(["cp", "-a", place / "old", place / "data" / "pg"], check=True)
    told = subprocess.run(
        [CONSENT, "ledger", "status", "--data", place / "data", "--tenant", "demo"], capture_output=True, check=False
    )
    assert told.returncode == 2
    assert b"key-encryption keys are not those" in told.stderr


def test_a_purge_under_load_loses_and_fails_nothing(place: Path) -> None:
    """New strands all the time, by two workers, while keys are rotated three times."""
    wrong: list[object] = []
    people: list[str] = []
    stop = threading.Event()

    def load(demo: Demo, number: int) -> None:
        with demo.client() as client:
            while not stop.is_set():
                who = f"{number}-{uuid.uuid4().hex}"
                answer = client.record(who)
                if answer.status != 201:
                    wrong.append(answer)
                people.append(who)

    with running(place, "--workers", "2") as demo:
        threads = [threading.Thread(target=load, args=(demo, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            purged = [purge(place) for _ in range(3)]
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert wrong == []
        assert all(one["turned"] for one in purged)
        with demo.client() as client:
            assert [len(client.history(who)) for who in people] == [1] * len(people)
        keys = (place / "data" / "key-encryption-keys").read_text().split()
        assert len(keys) == 1
        assert demo.stop() == 0, demo.said()


def test_one_purge_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path / "keys"), pytest.raises(SetupError, match="under way"), alone(tmp_path / "keys"):
        pass
    with alone(tmp_path / "keys"):
        pass


def test_two_purges_at_once_destroy_no_key_that_is_used(place: Path) -> None:
    with running(place) as demo, demo.client() as client:
        assert client.record("ada").status == 201
        command = [CONSENT, "purge", "--data", str(place / "data"), "--json"]
        both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)]
        said = [one.communicate(timeout=60)[1] for one in both]
        ends = sorted(one.returncode for one in both)
        assert ends in ([0, 0], [0, 2]), said
        assert ends == [0, 0] or any(b"Another purge is under way" in one for one in said)
        (key,) = (place / "data" / "key-encryption-keys").read_text().split()
        name = hashlib.sha256(bytes.fromhex(key)).digest()[:4]
        assert {one[:4] for one in asyncio.run(wrapped(demo))} == {name}
        assert len(client.history("ada")) == 1
