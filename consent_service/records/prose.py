"""What a record says, for people: one sheet, written as text or as a page that loads nothing and needs no script."""

from __future__ import annotations

import html
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import NamedTuple

from consent_service.policies import Duration, Notice, Party, Policy, Purpose, Recipient
from consent_service.records.dpv import rights, shown, spoken, worded
from consent_service.records.words import ENGLISH, WORDS, Words
from consent_service.states import GRANTS, Event, EventRecord


class Said(NamedTuple):
    """A text, and the language that it is in; "" where it is in none."""

    text: str
    language: str = ""


class Place(NamedTuple):
    """Where an act stands in a ledger."""

    origin: str
    entry: int


class Fact(NamedTuple):
    """What it is, "" for a sentence that stands by itself; and what is said of it."""

    name: Said
    said: tuple[Said, ...]


def _fact(name: str | Said, *said: str | Said) -> Fact:
    """What comes as plain text is in the language of the sheet, or in none."""
    whole, *parts = (one if isinstance(one, Said) else Said(one) for one in (name, *said))
    return Fact(whole, tuple(parts))


class Sheet(NamedTuple):
    """What is told, in order."""

    words: Words
    language: str
    """Of the policy's texts, where they have it."""
    above: list[tuple[str, list[Fact]]]
    """Heading and facts."""
    columns: tuple[str, ...]
    decisions: list[tuple[Said, ...]]
    below: list[tuple[str, list[Fact]]]


def languages(policy: Policy) -> list[str]:
    """In which a sheet has words, of its own or of the policy's."""
    return sorted({*WORDS, *policy.tenant.languages})


def sheet(event: Event, policy: Policy, language: str, place: Place | None) -> Sheet:
    """What an act says under the version of the policy that it names, in a language (ISO 639-1)."""
    words = WORDS.get(language, ENGLISH)
    entries = [(policy.purposes[purpose], record) for record in event.records for purpose in spoken(policy, record)]
    purposes = list({purpose.id: purpose for purpose, _ in entries}.values())
    notice, _ = shown(event, policy, [purpose.id for purpose in purposes])
    label = words.label
    return Sheet(
        words, language,
        above=[
            (label["who"], list(_responsible(policy, notice, purposes, words))),
            (label["act"], list(_act(event, words))),
        ],
        columns=tuple(label[name] for name in ("purpose", "decision", "channel", "at", "until", "basis")),
        decisions=[_decision(purpose, record, words, language) for purpose, record in entries],
        below=[
            (label["recipients"], _recipients(purposes, words)),
            (label["retention"], [_kept(policy, purpose, words, language) for purpose in purposes]),
            *_remedies(policy, notice, purposes, words, language),
            (label["ledger"], list(_ledger(event, place, words))),
        ],
    )  # fmt: skip


def as_text(told: Sheet) -> str:
    """As plain text."""
    lines = [told.words.label["title"], "=" * len(told.words.label["title"])]
    for heading, facts in told.above:
        lines += _section(heading, facts)
    lines += ["", told.words.label["decided"], "-" * len(told.words.label["decided"])]
    for purpose, *cells in told.decisions:
        lines.append(f"{purpose.text}")
        lines += [f"  {name}: {cell.text}" for name, cell in zip(told.columns[1:], cells, strict=True)]
    for heading, facts in told.below:
        lines += _section(heading, facts)
    return "\n".join(lines) + "\n"


def _section(heading: str, facts: list[Fact]) -> list[str]:
    told = [(fact.name.text, " ".join(part.text for part in fact.said)) for fact in facts]
    return ["", heading, "-" * len(heading), *(f"{name}: {said}" if name else said for name, said in told)]


def as_html(told: Sheet) -> str:
    """As one page: headings in order, a table whose heads say what they are heads of, each text in its language."""
    label = told.words.label
    heads = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in told.columns)
    rows = "".join(_row(cells, told.words.language) for cells in told.decisions)
    return _PAGE.format(
        language=told.words.language,
        title=html.escape(label["title"]),
        above="".join(_part(heading, facts, told.words.language) for heading, facts in told.above),
        decided=html.escape(label["decided"]),
        heads=heads,
        rows=rows,
        below="".join(_part(heading, facts, told.words.language) for heading, facts in told.below),
    )


def _row(cells: tuple[Said, ...], language: str) -> str:
    first, *others = (_marked(cell, language) for cell in cells)
    return f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in others)}</tr>'


def _part(heading: str, facts: list[Fact], language: str) -> str:
    told = [(_marked(fact.name, language), " ".join(_marked(part, language) for part in fact.said)) for fact in facts]
    free = "".join(f"<p>{said}</p>" for name, said in told if not name)
    named = "".join(f"<dt>{name}</dt><dd>{said}</dd>" for name, said in told if name)
    return f"<h2>{html.escape(heading)}</h2>{free}" + (f"<dl>{named}</dl>" if named else "")


def _marked(said: Said, language: str) -> str:
    """A text in another language than the page's says so: whoever listens to it hears it pronounced right."""
    text = html.escape(said.text)
    return text if said.language in ("", language) else f'<span lang="{html.escape(said.language)}">{text}</span>'


_PAGE = """<!doctype html>
<html lang="{language}"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>
body {{ font: 1rem/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse }}
th, td {{ text-align: left; vertical-align: top; border-top: 1px solid #bbb; padding: .2rem .8rem .2rem 0 }}
dt {{ font-weight: bold }}
dd {{ overflow-wrap: anywhere }}
</style></head><body><main>
<h1>{title}</h1>{above}
<h2>{decided}</h2><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table>
{below}</main></body></html>
"""


# -- what is told ---------------------------------------------------------------------------------------------------


def _responsible(policy: Policy, notice: Notice | None, purposes: list[Purpose], words: Words) -> Iterator[Fact]:
    label, controller = words.label, policy.tenant.controller
    yield _fact("", controller.name)
    yield _fact(label["address"], f"{controller.address} ({controller.country})")
    yield _fact(label["contact"], _reached(controller))
    if notice is not None:
        yield _fact(label["dpo"], notice.dpo)
        if notice.representative is not None:
            yield _fact(label["representative"], _whole(notice.representative))
    for party in {joint.name: joint for purpose in purposes for joint in purpose.joint_controllers}.values():
        yield _fact(label["joint"], _whole(party))


def _act(event: Event, words: Words) -> Iterator[Fact]:
    label = words.label
    yield _fact(label["for"], f"{event.subject.type} {event.subject.id}")
    if event.guardian is not None:
        yield _fact(label["guardian"], label["by_guardian"])
    yield _fact(label["recorded"], moment(event.recorded_at, words))
    if event.method is not None:
        yield _fact(label["method"], words.method[event.method])
    if event.notice is not None:
        notice = event.notice
        yield _fact(label["notice"], f"{notice.id}, {label['version']} {notice.version} ({notice.language})")
        yield _fact(label["hash"], notice.hash or label["unknown"])


def _decision(purpose: Purpose, record: EventRecord, words: Words, language: str) -> tuple[Said, ...]:
    channels = purpose.channels if record.channel is None else (record.channel,)
    channel = ", ".join(words.channel[name] for name in channels)
    if record.contact is not None:
        channel = f"{channel}: {record.contact}"
    until = words.label["until_changed"]
    if record.status in GRANTS and purpose.valid_for is not None:
        until = moment(purpose.valid_for.after(record.occurred_at), words)
    return (
        Said(*worded(purpose.name, language)),
        Said(words.status[record.status]),
        Said(channel),
        Said(moment(record.occurred_at, words)),
        Said(until),
        Said(words.basis[purpose.legal_basis]),
    )


def _recipients(purposes: list[Purpose], words: Words) -> list[Fact]:
    found = {recipient.id: recipient for purpose in purposes for recipient in purpose.recipients}
    return [_fact("", _receiver(it, words)) for it in found.values()] or [_fact("", words.label["nobody"])]


def _receiver(recipient: Recipient, words: Words) -> str:
    ways = (recipient.address, recipient.country, recipient.contact)
    terms = (words.role[recipient.role], words.safeguard[recipient.safeguard])
    return f"{recipient.name} ({', '.join(filter(None, terms))}): {', '.join(filter(None, ways))}"


def _kept(policy: Policy, purpose: Purpose, words: Words, language: str) -> Fact:
    period = f"{lasting(purpose.retention.period, words)} {words.after[purpose.retention.after]}."
    places = ", ".join(purpose.storage or policy.tenant.storage) or words.label["unknown"]
    reason = Said(*worded(purpose.retention.reason, language))
    return _fact(Said(*worded(purpose.name, language)), period, reason, f"{words.label['storage']}: {places}.")


def _remedies(
    policy: Policy, notice: Notice | None, purposes: list[Purpose], words: Words, language: str
) -> Iterator[tuple[str, list[Fact]]]:
    """How to withdraw, which rights there are, and who hears complaints."""
    label, home = words.label, policy.jurisdictions.get(policy.tenant.jurisdiction)
    authority = notice.complaint if notice is not None else None if home is None else home.authority
    articles = sorted({one for p in purposes for one in rights(p)}, key=lambda one: int(one[1:].partition("-")[0]))
    named = _fact("", "; ".join(words.right[article] for article in articles) + ".")
    told = [] if notice is None else [_fact("", Said(*worded(notice.rights, language)))]
    withdrawal = label["unknown"] if notice is None else Said(*worded(notice.withdrawal, language))
    yield label["withdrawal"], [_fact("", withdrawal)]
    yield label["rights"], [named, *told]
    yield label["complaint"], [_fact("", label["unknown"] if authority is None else _whole(authority))]


def _ledger(event: Event, place: Place | None, words: Words) -> Iterator[Fact]:
    label = words.label
    if place is not None:
        yield _fact(label["origin"], place.origin)
        yield _fact(label["entry"], str(place.entry))
    yield _fact(label["event"], str(event.event))
    yield _fact(label["policy"], str(event.policy))


def _whole(party: Party) -> str:
    return f"{party.name}, {party.address}; {_reached(party)}"


def _reached(party: Party) -> str:
    return ", ".join(way for way in (party.email, party.phone, party.url) if way is not None) or party.address


def moment(at: datetime, words: Words) -> str:
    """A time in UTC, to the minute."""
    utc = at.astimezone(UTC)
    month = words.months[utc.month - 1]
    return words.moment.format(day=utc.day, month=month, year=utc.year, time=f"{utc:%H:%M}")


def lasting(duration: Duration, words: Words) -> str:
    """A duration in words."""
    years, months = divmod(duration.months, 12)
    minutes, seconds = divmod(duration.seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    counted = zip(words.unit.values(), (years, months, days, hours, minutes, seconds), strict=True)
    return ", ".join(f"{count} {unit[count != 1]}" for unit, count in counted if count)
