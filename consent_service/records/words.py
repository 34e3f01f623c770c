"""The words in which people are told what a record says, by language. Data only; a test sees that none is missing.

For a language without a table of its own the English one stands in, around the policy's own texts in that language.
"""

from __future__ import annotations

import msgspec


class Words(msgspec.Struct, frozen=True, kw_only=True):
    """One language's."""

    language: str
    label: dict[str, str]
    """Headings and what stands before a value."""
    status: dict[str, str]
    method: dict[str, str]
    channel: dict[str, str]
    basis: dict[str, str]
    after: dict[str, str]
    """What a retention is counted from."""
    role: dict[str, str]
    safeguard: dict[str, str]
    right: dict[str, str]
    """By article."""
    unit: dict[str, tuple[str, str]]
    """Of a duration: one, and several."""
    months: tuple[str, ...]
    moment: str
    """With `day`, `month`, `year` and `time`."""


ENGLISH = Words(
    language="en",
    label={
        "title": "Receipt for your decision",
        "who": "Who is responsible",
        "address": "Address",
        "contact": "Contact",
        "dpo": "Data protection officer",
        "representative": "Representative",
        "joint": "Jointly responsible",
        "act": "When and how",
        "for": "For",
        "recorded": "Recorded",
        "method": "How",
        "guardian": "Acted",
        "by_guardian": "a guardian, for a child",
        "notice": "Notice",
        "version": "version",
        "hash": "Its SHA-256",
        "decided": "What was decided",
        "purpose": "Purpose",
        "decision": "Decision",
        "channel": "Channel",
        "at": "Moment",
        "until": "Holds until",
        "until_changed": "until you change it",
        "basis": "Legal basis",
        "any_channel": "all",
        "recipients": "Who receives the data",
        "nobody": "Nobody else.",
        "retention": "How long data is kept",
        "storage": "Stored in",
        "withdrawal": "How to withdraw",
        "rights": "Your rights",
        "complaint": "Where to complain",
        "ledger": "Where it stands in the ledger",
        "origin": "Ledger",
        "entry": "Entry",
        "event": "Act",
        "policy": "Version of the policy",
        "unknown": "not stated",
    },
    status={
        "given": "consent given",
        "refused": "refused",
        "withdrawn": "consent withdrawn",
        "objected": "objected",
        "requested": "asked for, not yet confirmed",
        "confirmed": "consent confirmed",
        "renewed": "consent renewed",
        "restricted": "processing restricted",
        "restriction_lifted": "restriction lifted",
        "applies": "legal basis applies",
        "ceased": "legal basis has ceased",
    },
    method={
        "banner_button": "button on a banner",
        "preference_page": "preference page",
        "form": "form",
        "double_opt_in": "confirmation by e-mail",
        "phone_script": "on the telephone",
        "paper_form": "paper form",
        "voice_script": "voice assistant",
        "shop_terminal": "terminal in a shop",
        "device_setup": "set-up of a device",
        "api": "reported by a service",
        "import": "taken over from another system",
        "signal": "signal of the browser",
    },
    channel={
        "web": "website",
        "app": "app",
        "email": "e-mail",
        "phone": "telephone",
        "push": "push messages",
        "voice": "voice assistant",
        "device": "device",
        "shop": "shop",
    },
    basis={
        "consent": "consent",
        "contract": "contract",
        "legal_obligation": "legal obligation",
        "vital_interests": "vital interests",
        "public_task": "public task",
        "legitimate_interest": "legitimate interest",
    },
    after={
        "last_use": "after the last use",
        "withdrawal": "after withdrawal",
        "end_of_contract": "after the end of the contract",
        "collection": "after collection",
    },
    role={
        "processor": "on our behalf",
        "controller": "responsible itself",
        "joint_controller": "jointly responsible",
    },
    safeguard={
        "none_needed": "",
        "adequacy": "adequacy decision",
        "standard_clauses": "standard contractual clauses",
        "binding_rules": "binding corporate rules",
        "derogation": "derogation",
    },
    right={
        "A7-3": "withdraw consent",
        "A13": "be informed when data is collected",
        "A14": "be informed about data from others",
        "A15": "access",
        "A16": "rectification",
        "A17": "erasure",
        "A18": "restriction",
        "A20": "portability",
        "A21": "object",
        "A22": "no decision by automation alone",
        "A77": "complain to an authority",
    },
    unit={
        "year": ("year", "years"),
        "month": ("month", "months"),
        "day": ("day", "days"),
        "hour": ("hour", "hours"),
        "minute": ("minute", "minutes"),
        "second": ("second", "seconds"),
    },
    months=(
        "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
        "December",
    ),
    moment="{day} {month} {year}, {time} (UTC)",
)  # fmt: skip

GERMAN = Words(
    language="de",
    label={
        "title": "Beleg über Ihre Entscheidung",
        "who": "Wer verantwortlich ist",
        "address": "Anschrift",
        "contact": "Kontakt",
        "dpo": "Datenschutz",
        "representative": "Vertretung",
        "joint": "Gemeinsam verantwortlich",
        "act": "Wann und wie",
        "for": "Für",
        "recorded": "Aufgezeichnet",
        "method": "Wie",
        "guardian": "Gehandelt hat",
        "by_guardian": "eine sorgeberechtigte Person, für ein Kind",
        "notice": "Hinweis",
        "version": "Fassung",
        "hash": "Dessen SHA-256",
        "decided": "Was entschieden wurde",
        "purpose": "Zweck",
        "decision": "Entscheidung",
        "channel": "Kanal",
        "at": "Zeitpunkt",
        "until": "Gilt bis",
        "until_changed": "bis Sie es ändern",
        "basis": "Rechtsgrundlage",
        "any_channel": "alle",
        "recipients": "Wer die Daten erhält",
        "nobody": "Niemand sonst.",
        "retention": "Wie lange Daten aufbewahrt werden",
        "storage": "Gespeichert in",
        "withdrawal": "Wie Sie widerrufen",
        "rights": "Ihre Rechte",
        "complaint": "Wo Sie sich beschweren können",
        "ledger": "Wo es im Protokoll steht",
        "origin": "Protokoll",
        "entry": "Eintrag",
        "event": "Vorgang",
        "policy": "Fassung der Regeln",
        "unknown": "nicht angegeben",
    },
    status={
        "given": "Einwilligung erteilt",
        "refused": "abgelehnt",
        "withdrawn": "Einwilligung widerrufen",
        "objected": "Widerspruch eingelegt",
        "requested": "angefragt, noch nicht bestätigt",
        "confirmed": "Einwilligung bestätigt",
        "renewed": "Einwilligung erneuert",
        "restricted": "Verarbeitung eingeschränkt",
        "restriction_lifted": "Einschränkung aufgehoben",
        "applies": "Rechtsgrundlage besteht",
        "ceased": "Rechtsgrundlage ist entfallen",
    },
    method={
        "banner_button": "Schaltfläche eines Banners",
        "preference_page": "Seite mit Einstellungen",
        "form": "Formular",
        "double_opt_in": "Bestätigung per E-Mail",
        "phone_script": "am Telefon",
        "paper_form": "Papierformular",
        "voice_script": "Sprachassistent",
        "shop_terminal": "Terminal im Laden",
        "device_setup": "Einrichtung eines Geräts",
        "api": "von einem Dienst gemeldet",
        "import": "aus einem anderen System übernommen",
        "signal": "Signal des Browsers",
    },
    channel={
        "web": "Website",
        "app": "App",
        "email": "E-Mail",
        "phone": "Telefon",
        "push": "Push-Nachrichten",
        "voice": "Sprachassistent",
        "device": "Gerät",
        "shop": "Laden",
    },
    basis={
        "consent": "Einwilligung",
        "contract": "Vertrag",
        "legal_obligation": "rechtliche Verpflichtung",
        "vital_interests": "lebenswichtige Interessen",
        "public_task": "öffentliche Aufgabe",
        "legitimate_interest": "berechtigtes Interesse",
    },
    after={
        "last_use": "ab der letzten Nutzung",
        "withdrawal": "ab dem Widerruf",
        "end_of_contract": "ab dem Ende des Vertrags",
        "collection": "ab der Erhebung",
    },
    role={
        "processor": "in unserem Auftrag",
        "controller": "selbst verantwortlich",
        "joint_controller": "gemeinsam verantwortlich",
    },
    safeguard={
        "none_needed": "",
        "adequacy": "Angemessenheitsbeschluss",
        "standard_clauses": "Standardvertragsklauseln",
        "binding_rules": "verbindliche interne Vorschriften",
        "derogation": "Ausnahme",
    },
    right={
        "A7-3": "Einwilligung widerrufen",
        "A13": "bei der Erhebung informiert werden",
        "A14": "über Daten von anderen informiert werden",
        "A15": "Auskunft",
        "A16": "Berichtigung",
        "A17": "Löschung",
        "A18": "Einschränkung",
        "A20": "Übertragbarkeit",
        "A21": "Widerspruch",
        "A22": "keine Entscheidung allein durch Automaten",
        "A77": "Beschwerde bei einer Aufsichtsbehörde",
    },
    unit={
        "year": ("Jahr", "Jahre"),
        "month": ("Monat", "Monate"),
        "day": ("Tag", "Tage"),
        "hour": ("Stunde", "Stunden"),
        "minute": ("Minute", "Minuten"),
        "second": ("Sekunde", "Sekunden"),
    },
    months=(
        "Januar", "Februar", "März", "April", "Mai", "Juni", "Juli", "August", "September", "Oktober", "November",
        "Dezember",
    ),
    moment="{day}. {month} {year}, {time} Uhr (UTC)",
)  # fmt: skip

WORDS: dict[str, Words] = {words.language: words for words in (ENGLISH, GERMAN)}
