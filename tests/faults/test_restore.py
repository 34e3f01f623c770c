"""Restoring backups of a real database: an older one is frozen, and one that catches up goes on by itself."""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

from demos import CONSENT, Demo, running


def status(place: Path) -> dict[str, Any]:
    said = command(place, "ledger", "status", "--tenant", "demo", "--json")
    assert said.returncode == 0, said.stderr
    return dict(json.loads(said.stdout))


def command(place: Path, *words: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([CONSENT, *words, "--data", str(place / "data")], capture_output=True, check=False)


def cluster(place: Path) -> Path:
    return place / "data" / "pg"


def stopped(demo: Demo) -> None:
    assert demo.stop() == 0, demo.said()


def restored(place: Path, backup: Path) -> None:
    """The backup in the place of the cluster; what lies outside it stays as it is."""
    shutil.rmtree(cluster(place))
    subprocess.run(["cp", "-a", backup, cluster(place)], check=True)


def test_an_older_backup_is_frozen_and_its_replayed_tail_thaws_it(place: Path) -> None:
    old, new = place / "old", place / "new"
    with running(place) as demo, demo.client() as client:
        assert client.record("ada").status == 201
        stopped(demo)
    subprocess.run(["cp", "-a", cluster(place), old], check=True)
    with running(place) as demo, demo.client() as client:
        assert client.record("ada", "withdrawn").status == 201
        receipt = client.record("bob").body["receipt"]
        stopped(demo)
    before = status(place)
    assert before["frozen"] is None
    subprocess.run(["cp", "-a", cluster(place), new], check=True)

    restored(place, old)
    with running(place) as demo, demo.client() as client:
        refused = client.record("ada", "withdrawn")
        assert (refused.status, refused.body["type"]) == (503, "/problems/frozen")
        assert "Restore a newer copy" in refused.body["detail"]
        assert client.check("ada").allow == (True, "consent"), "reads go on, from what is there"
        stopped(demo)
    assert "older than what was signed" in status(place)["frozen"]

    restored(place, old)  # and the archived log of changes beside it
    (cluster(place) / "recovery.signal").touch()
    with (cluster(place) / "postgresql.auto.conf").open("a") as settings:
        settings.write(f"restore_command = 'cp {new}/pg_wal/%f %p'\n")
    for path in ("recovery.signal", "postgresql.auto.conf"):
        shutil.chown(cluster(place) / path, old.stat().st_uid, old.stat().st_gid)
    after = status(place)
    assert (after["frozen"], after["size"], after["root"]) == (None, before["size"], before["root"])
    with running(place) as demo, demo.client() as client:
        assert client.check("ada").allow == (False, "withdrawn")
        assert client.record("ada", "withdrawn").status == 201
        stopped(demo)
    (place / "bob.tlog-proof").write_text(receipt)
    genuine = [CONSENT, "verify", place / "bob.tlog-proof", "--key", before["keys"][0]]
    assert subprocess.run(genuine, check=False).returncode == 0


def test_what_no_backup_holds_is_given_up_by_command(place: Path) -> None:
    old = place / "old"
    subprocess.run(["cp", "-a", cluster(place), old], check=True)
    with running(place) as demo, demo.client() as client:
        assert client.record("ada").status == 201
        stopped(demo)
    restored(place, old)
    recovered = command(place, "ledger", "recover", "--tenant", "demo", "--yes")
    assert recovered.returncode == 0, recovered.stderr
    assert b"goes on as localhost/demo/2" in recovered.stdout
    again = command(place, "ledger", "recover", "--tenant", "demo", "--yes")
    assert again.returncode == 1
    assert b"nothing to recover from" in again.stderr
    with running(place) as demo, demo.client() as client:
        assert client.check("ada").allow == (False, "no_record")
        answer = client.record("ada")
        assert (answer.status, answer.body["rev"].partition(".")[0]) == (201, "2")
        stopped(demo)
    assert status(place)["origin"] == "localhost/demo/2"


async def test_what_is_published_while_it_serves_is_known_outside(place: Path) -> None:
    with running(place, environment={"CONSENT_PUBLISH_S": "1"}) as demo, demo.client() as client:
        size = int(client.record("ada").body["rev"].partition(".")[2])
        for _ in range(200):
            shown = client.call("GET", "/ledger/demo/checkpoint", key="")
            if shown.status == 200 and int(shown.body.split("\n")[1]) >= size:
                break
            await asyncio.sleep(0.05)
        assert shown.body == (place / "data" / "anchor" / "demo.checkpoint").read_text()
        stopped(demo)
