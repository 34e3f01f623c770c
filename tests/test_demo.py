"""The welcome: what it prints can be pasted."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from demos import new_place, running

README = Path(__file__).parents[1] / "README.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_printed_commands_work_when_pasted():
    with new_place() as place:
        with running(place) as demo:
            said = demo.said()
            lines = [line.strip() for line in said.splitlines() if line.startswith("  curl ")]
            assert len(lines) == 2
            for _ in range(2):  # pasted twice, too
                recorded, checked = (paste(line) for line in lines)
                assert recorded["effective"] is True
                assert checked["allow"] is True
                assert checked["reason"] == "consent"
                assert checked["record"] == recorded["event"]
            assert all(key in said for key in demo.keys.values())
            assert f"{demo.url}/docs" in said
            assert "<html" in subprocess.run(
                ["curl", "-sf", f"{demo.url}/docs"], check=True, capture_output=True, text=True, timeout=20
            ).stdout  # fmt: skip
        with running(place, data=demo.data) as again:
            assert again.keys == demo.keys
            lines = [line.strip() for line in again.said().splitlines() if line.startswith("  curl ")]
            assert next(paste(line) for line in lines) == recorded
        assert (place / "data").stat().st_mode & 0o777 == 0o700
        assert (place / "data" / "keys.json").stat().st_mode & 0o777 == 0o600
        assert (place / "data" / "secret").stat().st_mode & 0o777 == 0o600


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl on this machine")
def test_the_readme_shows_what_really_happens():
    shown = list(examples())
    assert len(shown) == 2
    with new_place() as place, running(place) as demo:
        port = demo.url.rsplit(":", 1)[1]
        for command, answer in shown:
            here = f"KEY={demo.keys['service']}; " + command.replace(":8080/", f":{port}/")
            assert still(paste(here)) == still(json.loads(answer))


def examples() -> Iterator[tuple[str, str]]:
    """The README's console blocks: what is typed, and what comes back."""
    for block in re.findall(r"```console\n\$ (.*?)```", README.read_text(), re.DOTALL):
        typed, _, answer = block.strip().rpartition("\n")
        yield typed, answer


def still(answer: object) -> object:
    """An answer without what differs from run to run: ids, times and proofs. Of its record the type is enough."""
    if isinstance(answer, dict) and isinstance(answer.get("record"), dict):
        answer = answer | {"record": {"@type": answer["record"]["@type"], "…": "…"}}
    text = json.dumps(answer, ensure_ascii=False)
    text = re.sub(r"(c2sp\.org/tlog-proof@v1\\n)[^\"]*", r"\1…", text)
    text = re.sub(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "id", text)
    return json.loads(re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+Z", "time", text))


def paste(line: str) -> dict[str, object]:
    done = subprocess.run(["sh", "-c", line], check=True, capture_output=True, text=True, timeout=20)
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer
