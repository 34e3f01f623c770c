"""`consent` itself, on which the other modules hang their commands; and what becomes of an error."""

from __future__ import annotations

import sys

import click

from consent_service import __version__
from consent_service.cli.terminal import tell
from consent_service.errors import ConsentError, SetupError


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def consent() -> None:
    """Record consents, answer may-we checks, prove both."""


def main() -> None:
    """Run the command; domain errors become one clear text, or with --json one object, and an exit code."""
    try:
        consent()
    except ConsentError as error:
        lines = [str(error), *(f"  {wrong.pointer}: {wrong.detail}" for wrong in error.errors)]
        click.echo("consent: " + "\n".join(lines), err=True)
        if "--json" in sys.argv:
            tell(True, {"error": str(error), "errors": error.errors}, "")
        sys.exit(2 if isinstance(error, SetupError) else 1)
    except (OSError, UnicodeError) as error:
        said = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        click.echo(f"consent: Something cannot be read or written: {said or error}.", err=True)
        sys.exit(2)
