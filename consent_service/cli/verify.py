"""`consent verify`: an export or a receipt checked offline."""

from __future__ import annotations

import sys
from typing import BinaryIO, TextIO

import click
import msgspec

from consent_service import policies, records
from consent_service.cli.options import as_json
from consent_service.cli.root import consent
from consent_service.cli.terminal import tell
from consent_service.errors import ConsentError, SetupError
from consent_service.ledger import audit, container, receipt, verdict
from consent_service.ledger.note import NoteError
from consent_service.ledger.proof import MAX_PROOF
from consent_service.ledger.trust import MAX_TRUST, Trust, trusting


@consent.command("verify")
@click.argument("file", type=click.File("rb"))
@click.option(
    "--key",
    "keys_given",
    multiple=True,
    metavar="VKEY",
    help="A log's key, as `consent ledger status` shows it; several times: of older files the `retired` ones too.",
)
@click.option(
    "--trust",
    type=click.File("r", encoding="utf-8", errors="surrogateescape"),
    metavar="POLICY",
    help="A file that says which logs and witnesses are trusted (c2sp.org/tlog-policy).",
)
@click.option("--policy", "folder", metavar="FOLDER", help="The policy in force then: tells in words what it says.")
@click.option("--language", metavar="LANGUAGE", help="Of those words: de, en (default), or another of the policy's.")
@as_json
def verify_file(
    file: BinaryIO, keys_given: tuple[str, ...], trust: TextIO | None, folder: str | None, language: str | None,
    as_json: bool,
) -> None:  # fmt: skip
    """Check an export or a receipt: offline, by itself and the keys that you trust. Exit code 0: genuine, 1: not.

    An export brings the key that it is signed with. Without one of yours it is checked against that: then 0 means no
    more than that it is consistent in itself, and whose it is was not checked.
    """
    if keys_given and trust is not None:
        raise click.UsageError("Name whom you trust once: by --key, or by a --trust file.")
    text = trust.read(MAX_TRUST + 1) if trust is not None else trusting(keys_given) if keys_given else None
    try:
        whom = None if text is None else Trust.parse(text)
    except NoteError as error:
        raise click.UsageError(f"That is nobody to trust: {error}.") from None
    if language is not None and folder is None:
        raise click.UsageError("--language is that of the words that --policy tells: name its folder too.")
    start = file.read(MAX_PROOF + 1)
    if start.startswith(container.MAGIC) and folder is not None:
        raise click.UsageError("--policy tells what a receipt says, and this is an export: leave it out.")
    if start.startswith(container.MAGIC):
        _verify_export(file, whom, as_json)
    elif whom is None:
        raise click.UsageError("Name whom you trust: one --key or more, or a --trust file. A receipt brings none.")
    else:
        _verify_receipt(start.decode(errors="surrogateescape"), whom, folder, language or "en", as_json)


def _verify_export(file: BinaryIO, whom: Trust | None, as_json: bool) -> None:
    if not file.seekable():
        raise click.UsageError("An export is read by its directory: give a file, not a pipe.")
    found = audit.verify(file, whom)
    tell(as_json, found, verdict.as_text(found))
    if not found.consistent:
        sys.exit(1)


def _verify_receipt(text: str, whom: Trust, folder: str | None, language: str, as_json: bool) -> None:
    try:
        policy = None if folder is None else policies.load(policies.find(folder))
    except ConsentError as error:
        raise click.UsageError(str(error)) from None
    if policy is not None and language not in (known := records.languages(policy)):
        raise click.UsageError(f"There are no words in the language {language!r}: take one of {', '.join(known)}.")
    try:
        found = receipt.verify(text, whom)
    except NoteError as error:
        tell(as_json, {"genuine": False, "why": str(error)}, f"Falsified or not a receipt: {error}.")
        sys.exit(1)
    facts, said = receipt.as_json(found), receipt.as_text(found)
    why = None
    if policy is not None:
        try:
            record, words = _record_of(found, policy, language)
            facts, said = {**facts, "record": msgspec.Raw(record), "text": words}, f"{said}\n\n{words}"
        except ConsentError as error:
            why = str(error)
    tell(as_json, facts, said)
    if why is not None:
        raise click.UsageError(f"The receipt is genuine, but --policy cannot tell more of it. {why}")


def _record_of(found: receipt.Receipt, policy: policies.Policy, language: str) -> tuple[bytes, str]:
    """What a genuine receipt says under a policy: the record, and in words."""
    event = records.opened(found.payload)
    if not records.fits(event, policy):
        raise SetupError(
            f"The policy is not the one that it names (version {event.policy}): give the folder as it was then."
        )
    told = records.sheet(event, policy, language, records.Place(found.checkpoint.origin, found.index))
    return records.receipt(event, policy), records.as_text(told)
