"""The house itself: imports, own lints, documents that must stay true."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import click
import msgspec
import pytest

from consent_service import cli, openapi, operations
from consent_service.errors import ConsentError
from consent_service.settings import Settings

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "consent_service"
MODULES = sorted(PACKAGE.rglob("*.py"))
LONGEST = 60
REASONED: dict[str, str] = {}
"""Functions that are longer than LONGEST lines, with the reason."""


def test_rooms_import_downwards_only() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()", "--no-cache"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_is_readable(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert ast.get_docstring(tree), "a room says what it is"
    long = {
        function.name: function.end_lineno - function.lineno + 1
        for function in functions(tree)
        if (function.end_lineno or 0) - function.lineno >= LONGEST and function.name not in REASONED
    }
    assert long == {}


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_keeps_our_rules(file: Path) -> None:
    text = file.read_text()
    assert "asyncio.wait_for" not in text, "it swallows cancellations; use asyncio.timeout"
    assert not re.search(r"\b(TODO|FIXME|XXX)\b", text)
    assert "structlog.get_logger" not in text or file.name == "log.py", "log.get() puts the allow-list in front"


def test_the_contract_is_committed_and_fresh() -> None:
    committed = (ROOT / "openapi" / "v1.json").read_bytes()
    assert committed == openapi.document(operations.ALL), "run: consent openapi > openapi/v1.json"


def test_every_error_says_what_to_do() -> None:
    def kinds(kind: type[ConsentError]) -> Iterator[type[ConsentError]]:
        for child in kind.__subclasses__():
            yield child
            yield from kinds(child)

    silent = [
        kind.__name__
        for kind in kinds(ConsentError)
        if not kind.__doc__ or not kind.title() or ". " not in kind.__doc__
    ]
    assert silent == []


def commands(command: click.Command, name: str = "consent") -> Iterator[tuple[str, click.Command]]:
    yield name, command
    if isinstance(command, click.Group):
        for child, found in command.commands.items():
            yield from commands(found, f"{name} {child}")


@pytest.mark.parametrize(("name", "command"), list(commands(cli.consent)), ids=str)
def test_a_command_explains_itself(name: str, command: click.Command) -> None:
    assert command.help, name
    options = {option for parameter in command.params for option in parameter.opts}
    if not isinstance(command, click.Group) and name != "consent openapi":  # which prints JSON anyway
        assert "--json" in options, name


def test_every_setting_is_documented() -> None:
    text = (PACKAGE / "settings.py").read_text()
    for field in msgspec.structs.fields(Settings):
        assert re.search(rf'^    {field.name}: .*\n    """', text, re.MULTILINE), field.name


def test_no_file_names_a_package_index() -> None:
    hosts = (r"py[p]i\.org", "python[h]osted", r"registry\.n[p]mjs", r"registry\.y[a]rnpkg", r"deb\.d[e]bian",
             r"un[p]kg\.com", "js[d]elivr")  # fmt: skip
    host = re.compile("|".join(hosts))
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    files = [ROOT / name for name in listed if (ROOT / name).is_file()]
    naming = [str(file) for file in files if host.search(file.read_text(errors="replace"))]
    assert naming == []


def test_the_locks_agree() -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9-]+==\S+)", (ROOT / name).read_text(), re.MULTILINE))

    assert pins("requirements.lock") <= pins("requirements-test.lock")


def test_an_extra_brings_all_that_it_needs_and_the_core_nothing_of_it() -> None:
    def names(lock: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9-]+)==", (ROOT / lock).read_text(), re.MULTILINE))

    hook = ast.parse((ROOT / "hatch_build.py").read_text())
    (written,) = (node.value for node in hook.body if isinstance(node, ast.Assign))
    extras = ast.literal_eval(written)
    assert extras
    for extra, packages in extras.items():
        assert set(packages) <= names("requirements-test.lock") - names("requirements.lock"), extra
        needed = {
            re.split(r"[^A-Za-z0-9_.-]", line)[0].replace("_", "-").lower()
            for package in packages
            for line in metadata.requires(package) or []
            if "extra ==" not in line
        }
        assert needed <= names("requirements.lock") | set(packages), extra
