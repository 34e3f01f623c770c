"""`consent openapi`: the OpenAPI file."""

from __future__ import annotations

import click

from consent_service.cli.root import consent


@consent.command("openapi")
@click.option("--json", is_flag=True, expose_value=False, help="Nothing else: the file is JSON.")
def print_openapi() -> None:
    """Print the OpenAPI file."""
    from consent_service import openapi, operations  # noqa: PLC0415 -- most commands need no framework

    click.echo(openapi.document(operations.ALL), nl=False)
