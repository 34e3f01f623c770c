"""Options that commands of several modules take."""

from __future__ import annotations

from collections.abc import Callable

import click

as_json = click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of text.")


def service_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that every command with a database takes."""
    for option in reversed((
        click.option("--data", metavar="DIR", help="Folder of the embedded database (default .consent)."),
        click.option("--database-url", metavar="URL", help="Use this PostgreSQL instead of the embedded one."),
    )):  # fmt: skip
        command = option(command)
    return command
