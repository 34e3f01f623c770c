"""The nouns of a policy: frozen Structs that refuse unknown keys. One TOML file is one Struct.

Texts for people are tables by language (`{en = "…", de = "…"}`). Durations are ISO 8601 (`P13M`, `P30D`, `PT10M`).
DPV terms are those of the Data Privacy Vocabulary 2.3 (w3id.org/dpv).
"""

from __future__ import annotations

import calendar
import hashlib
import re
from datetime import UTC, date, datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Literal, get_args

import msgspec
from msgspec import Meta

from consent_service.auth import Role, Scope

Channel = Literal["web", "app", "email", "phone", "push", "voice", "device", "shop"]
Method = Literal[
    "banner_button", "preference_page", "form", "double_opt_in", "phone_script", "paper_form", "voice_script",
    "shop_terminal", "device_setup", "api", "import", "signal",
]  # fmt: skip
Grade = Literal["imported", "anonymous_device", "signed_link", "service_attested", "login"]
Conflict = Literal["strictest", "latest_explicit", "account_wins"]
Basis = Literal["consent", "contract", "legal_obligation", "vital_interests", "public_task", "legitimate_interest"]

CHANNELS: tuple[Channel, ...] = get_args(Channel)
METHODS: tuple[Method, ...] = get_args(Method)
GRADES: tuple[Grade, ...] = get_args(Grade)
"""Evidence grades, weakest first; a grade's number is its place here."""

EXPLICIT_METHODS: frozenset[Method] = frozenset(
    {"form", "double_opt_in", "phone_script", "paper_form", "voice_script", "shop_terminal"}
)
"""Methods by which a person makes an express statement (GDPR Art. 9(2)(a), 22(2)(c); EDPB 05/2020, section 4).
A button on a banner, a switch or a device's set-up dialogue is an affirmative act, but no statement of its own."""

Source = Literal["data_subject", "third_party", "public"]

BASIS_TERM: dict[Basis, str] = {
    "consent": "eu-gdpr:A6-1-a",
    "contract": "eu-gdpr:A6-1-b",
    "legal_obligation": "eu-gdpr:A6-1-c",
    "vital_interests": "eu-gdpr:A6-1-d",
    "public_task": "eu-gdpr:A6-1-e",
    "legitimate_interest": "eu-gdpr:A6-1-f",
}
"""GDPR Art. 6(1) as DPV terms."""

Slug = Annotated[str, Meta(pattern=r"^[a-z0-9]+([._-][a-z0-9]+)*$", max_length=64)]
Country = Annotated[str, Meta(pattern=r"^[A-Z]{2}$")]
Language = Annotated[str, Meta(pattern=r"^[a-z]{2}$")]
Text = dict[Language, Annotated[str, Meta(min_length=1)]]
DataTerm = Annotated[str, Meta(pattern=r"^(pd|dpv):[A-Za-z]+$")]
DpvTerm = Annotated[str, Meta(pattern=r"^dpv:[A-Za-z]+$")]


class Duration:
    """An ISO 8601 duration of at most a hundred years: calendar months, then exact seconds."""

    __slots__ = ("_known", "_rest", "months", "seconds")

    def __init__(self, months: int = 0, seconds: int = 0) -> None:
        self.months = months
        self.seconds = seconds
        self._rest = timedelta(seconds=seconds)
        self._known: tuple[datetime, datetime] | None = None

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read `P1Y6M`, `P30D`, `PT10M`; raises ValueError on anything else."""
        match = _DURATION.fullmatch(text)
        if match is None or text.endswith(("P", "T")):
            raise ValueError(f"`{text}` is no duration; write for example P13M, P30D or PT10M")
        years, months, weeks, days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
        duration = cls(years * 12 + months, ((weeks * 7 + days) * 24 + hours) * 3600 + minutes * 60 + seconds)
        if duration.months > _MAX_MONTHS or duration.seconds > _MAX_SECONDS:
            raise ValueError(f"`{text}` is longer than a hundred years; write for example P13M, P30D or PT10M")
        return duration

    def after(self, start: datetime) -> datetime:
        """The moment this long after `start`. A day that the target month lacks becomes its last day."""
        known = self._known
        if known is not None and known[0] is start:  # a batch asks about the same moment again and again
            return known[1]
        end = self._after(start)
        self._known = start, end
        return end

    def _after(self, start: datetime) -> datetime:
        if self.months:
            years, month = divmod(start.month - 1 + self.months, 12)
            year, month, day = start.year + years, month + 1, start.day
            if day > 28:  # noqa: PLR2004 -- every month has that many days
                day = min(day, calendar.monthrange(year, month)[1])
            start = start.replace(year=year, month=month, day=day)
        return start + self._rest

    def can_exceed(self, other: Duration) -> bool:
        """Whether some start in a cycle of leap years makes this end later than `other` (P1M exceeds P30D)."""
        starts = (datetime(2024 + n // 12, n % 12 + 1, 1, tzinfo=UTC) for n in range(48))
        return any(self.after(start) > other.after(start) for start in starts)

    def __str__(self) -> str:
        days, rest = divmod(self.seconds, 86_400)
        clock = (rest // 3600, rest // 60 % 60, rest % 60)
        day_part = _parts((self.months, days), "MD")
        return "P" + day_part + (f"T{_parts(clock, 'HMS') or '0S'}" if rest or not day_part else "")

    def __repr__(self) -> str:
        return f"Duration({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Duration) and (self.months, self.seconds) == (other.months, other.seconds)

    def __hash__(self) -> int:
        return hash((self.months, self.seconds))


def _parts(numbers: tuple[int, ...], letters: str) -> str:
    return "".join(f"{number}{letter}" for number, letter in zip(numbers, letters, strict=True) if number)


_MAX_MONTHS, _MAX_SECONDS = 1_200, 36_525 * 86_400
_N = r"([0-9]{1,10})"
_DURATION = re.compile(rf"P(?:{_N}Y)?(?:{_N}M)?(?:{_N}W)?(?:{_N}D)?(?:T(?:{_N}H)?(?:{_N}M)?(?:{_N}S)?)?")


class Declared(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Base of everything that a policy file declares."""


class Party(Declared, frozen=True, kw_only=True):
    """An organisation with an address: controller, representative, joint controller, authority."""

    name: str
    address: str
    country: Country
    email: str | None = None
    phone: str | None = None
    url: str | None = None


class Recipient(Declared, frozen=True, kw_only=True):
    """Who receives data for a purpose (GDPR Art. 13(1)(e), (f); chapter V for the safeguard)."""

    id: Slug
    name: str
    role: Literal["processor", "controller", "joint_controller"]
    country: Country
    safeguard: Literal["none_needed", "adequacy", "standard_clauses", "binding_rules", "derogation"] = "none_needed"
    address: str | None = None
    contact: str | None = None
    """An e-mail address, a telephone number or a page."""


class Assessment(Declared, frozen=True, kw_only=True):
    """The balancing test of a legitimate interest, or another documented assessment."""

    id: Slug
    date: date
    summary: Text


class SignificantDecision(Declared, frozen=True, kw_only=True):
    """A solely automated decision with significant effect (GDPR Art. 22) and the human who can review it."""

    logic: Text
    human_contact: str


class Retention(Declared, frozen=True, kw_only=True):
    """How long data for the purpose is kept, counted from what, and why."""

    period: Duration
    after: Literal["last_use", "withdrawal", "end_of_contract", "collection"]
    reason: Text


class AgeRule(Declared, frozen=True, kw_only=True):
    """From which age a person consents alone: years, or `digital_consent` (GDPR Art. 8, by jurisdiction)."""

    minimum: Annotated[int, Meta(ge=1, le=25)] | Literal["digital_consent"]
    age_unknown: Literal["allow", "deny"] = "allow"


class OnOutage(Declared, frozen=True, kw_only=True):
    """What a check answers when the database cannot be asked and memory is too old."""

    behaviour: Literal["deny", "last_known", "allow"] = "deny"
    max_age: Duration | None = None


class Purpose(Declared, frozen=True, kw_only=True):
    """What processing is for. `policies/<tenant>/purposes/<id>.toml`."""

    id: Slug
    name: Text
    description: Text
    dpv: DpvTerm
    legal_basis: Basis
    assessment: Assessment | None = None
    requires_fact: bool | None = None
    """Whether a basis fact `applies` must be on record; unset: contract yes, other bases no."""
    direct_marketing: bool = False
    special_category: bool = False
    double_opt_in: bool = False
    significant_adm: SignificantDecision | None = None
    required_for_service: bool = False
    use_is_recorded: bool = False
    runs_under_restriction: bool = False
    """Storage or legal claims: goes on while processing is restricted (GDPR Art. 18(2))."""
    data_categories: Annotated[tuple[DataTerm, ...], Meta(min_length=1)]
    optional_data: tuple[DataTerm, ...] = ()
    """Of `data_categories`, what a person need not give (Art. 13(2)(e))."""
    sources: Annotated[tuple[Source, ...], Meta(min_length=1)] = ("data_subject",)
    """Where the data comes from (Art. 13(1), 14(2)(f))."""
    processing: Annotated[tuple[DpvTerm, ...], Meta(min_length=1)] = ("dpv:Collect", "dpv:Store", "dpv:Use")
    """What is done with the data (Art. 4(2)), as DPV terms for processing."""
    storage: tuple[Country, ...] = ()
    """Where the data is stored; unset: where the tenant says."""
    recipients: tuple[Recipient, ...] = ()
    joint_controllers: tuple[Party, ...] = ()
    channels: Annotated[tuple[Channel, ...], Meta(min_length=1)]
    contact: Literal["none", "optional", "required"] = "none"
    valid_from: Annotated[datetime, Meta(tz=True)] | None = None
    """Processing starts then; consent may be collected before."""
    valid_for: Duration | None = None
    reask_after_refusal: Duration | None = None
    reuse: Duration | None = None
    """How long a caller may go on using an allow without asking again; a withdrawal's `effective_by` includes it."""
    retention: Retention
    proof_kept: Duration | None = None
    """How long the proof of a consent is kept though the person is erased, because a law says so, counted from the
    last use that it may have permitted: in Germany five years for advertising by telephone (UWG section 7a(2))."""
    evidence: Grade = "anonymous_device"
    age: AgeRule | None = None
    required_notice: dict[Slug, Annotated[int, Meta(ge=1)]] = {}
    """Lowest version of a notice that a consent may rest on, by notice."""
    conflict: Conflict = "strictest"
    """What counts where linked identifiers differ. A no always counts where it is later, or its evidence stronger.
    Of an earlier no and a yes from before the link: `strictest` leaves it open and denies; `latest_explicit` takes an
    express yes; `account_wins` takes what the account said. What is said once they are linked counts under each."""
    on_outage: OnOutage = OnOutage()
    parent: Slug | None = None
    inherits_consent: bool = False
    """Whether a consent to the parent answers for this purpose too. Withdrawals always pass down."""
    terminal_access: Literal["none", "consent", "transmission", "strictly_necessary"] = "none"
    """Storing on or reading from the person's device: by consent, or an exemption (TDDDG section 25(2) no. 1 and 2)."""

    @property
    def needs_consent(self) -> bool:
        """By its basis, or because it reaches into the person's device (TDDDG section 25(1))."""
        return self.legal_basis == "consent" or self.terminal_access == "consent"

    @property
    def needs_explicit(self) -> bool:
        """Explicit consent: special categories (Art. 9(2)(a)), significant automated decisions (Art. 22(2)(c))."""
        return self.special_category or self.significant_adm is not None

    @property
    def needs_fact(self) -> bool:
        """Whether a basis other than consent must be on record for the person."""
        return self.requires_fact if self.requires_fact is not None else self.legal_basis == "contract"

    @property
    def objectable(self) -> bool:
        """GDPR Art. 21: direct marketing on any basis, else legitimate interest and public task."""
        return self.direct_marketing or self.legal_basis in ("legitimate_interest", "public_task")

    @property
    def reuse_window(self) -> timedelta:
        """`reuse` as exact time; a month counts 31 days, so that nothing is promised too early."""
        return (
            timedelta(0) if self.reuse is None else timedelta(days=31 * self.reuse.months, seconds=self.reuse.seconds)
        )

    @property
    def basis_term(self) -> str:
        """The legal basis as a DPV term."""
        if self.legal_basis == "consent" and self.special_category:
            return "eu-gdpr:A9-2-a"
        if self.legal_basis == "consent" and self.needs_explicit:
            return "eu-gdpr:A6-1-a-explicit-consent"
        return BASIS_TERM[self.legal_basis]


class Benefit(Declared, frozen=True, kw_only=True):
    """What was offered for a consent, and whether refusing left the person no worse off (GDPR Art. 7(4))."""

    offered: Text
    without_consent: Text


class Notice(Declared, frozen=True, kw_only=True, dict=True):
    """The information of GDPR Art. 13 as shown, one immutable version: `notices/<id>/<version>/`.

    `text` holds the prose files (`en.md`, `de.md`); everything else stands in `notice.toml`.
    """

    id: Slug
    version: Annotated[int, Meta(ge=1)]
    material: bool
    """A material change needs new consents; an editorial one does not."""
    changes: Text
    purposes: Annotated[tuple[Slug, ...], Meta(min_length=1)]
    controller: Party
    representative: Party | None = None
    dpo: str
    """How to reach the data protection officer, Art. 13(1)(b)."""
    legitimate_interests: Text
    """Art. 13(1)(d); "none" in words where there is none. So for the texts below."""
    recipients: tuple[Slug, ...]
    """Ids of the recipients that the text names, Art. 13(1)(e)."""
    transfers: Text
    retention: Text
    rights: Text
    withdrawal: Text
    complaint: Party
    statutory_or_contractual: Text
    automated_decisions: Text
    benefit: Benefit | None = None
    text: Text = {}

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the canonical JSON of the whole version, prose included."""
        return hashlib.sha256(canonical(self)).hexdigest()


class Jurisdiction(Declared, frozen=True, kw_only=True):
    """What differs by country: `jurisdictions/<iso>.toml`."""

    country: Country
    name: Text
    digital_consent_age: Annotated[int, Meta(ge=13, le=16)]
    """GDPR Art. 8(1)."""
    authority: Party
    max_valid_for: dict[Channel, Duration] = {}
    """Longest life of a consent for a channel, where the country sets one."""


class Assurance(Declared, frozen=True, kw_only=True):
    """How an officer must have logged in (OpenID Connect Core, section 2)."""

    acr: tuple[str, ...] = ()
    """Any one of these; none given: any will do."""
    amr: tuple[str, ...] = ()
    """All of these, e.g. `mfa` (RFC 8176)."""


class Issuer(Declared, frozen=True, kw_only=True):
    """An OpenID provider or authorisation server whose tokens the tenant accepts, and what for.

    All that decides is fixed here: nothing is taken from a token's own header but the name of a key.
    """

    issuer: Annotated[str, Meta(pattern=r"^https?://[^\s|]+$(?!\n)", max_length=150)]
    """`iss`, compared exactly. `http` is for loopback only."""
    kind: Literal["login", "service", "officer"]
    """Whose tokens: the tenant's customers, its machines (client credentials), or its officers."""
    audience: Annotated[str, Meta(min_length=1, max_length=200)]
    """`aud` of access tokens for this service (RFC 9068). Two tenants never share issuer and audience."""
    clients: tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...] = ()
    """Of a `login`: the tenant's own client ids, `aud` of the ID tokens by which a person links a device. Of others the
    `client_id` of the tokens that are taken; of machines it must be named, because nothing else tells their tokens from
    what a person may get at the same provider."""
    jwks_uri: Annotated[str, Meta(pattern=r"^https?://[^\s]+$(?!\n)", max_length=300)]
    algorithms: Annotated[
        tuple[Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"], ...],
        Meta(min_length=1),
    ] = ("RS256",)
    max_lifetime: Duration = Duration(seconds=86_400)
    """Longest time from `iat` to `exp`."""
    scopes: tuple[Scope, ...] = ()
    """The most that a machine's token may carry."""
    roles_claim: Annotated[str, Meta(min_length=1, max_length=64)] = "roles"
    """The claim that holds an officer's roles: a list of texts."""
    roles: dict[str, Role] = {}
    """Which text stands for which role."""
    assurance: dict[Role, Assurance] = {}
    origins: tuple[Annotated[str, Meta(pattern=r"^https?://[a-z0-9.:\[\]-]+$(?!\n)", max_length=255)], ...] = ()
    """Web origins (scheme, host, port, exactly) from which a browser may use the tokens."""
    rate: Annotated[int, Meta(ge=1)] | None = None
    """Requests per second of one bearer; unset: no limit."""


class Tenant(Declared, frozen=True, kw_only=True):
    """The controller and its place: `tenant.toml`."""

    id: Slug
    controller: Party
    jurisdiction: Country
    languages: Annotated[tuple[Language, ...], Meta(min_length=1)]
    storage: tuple[Country, ...] = ()
    """Where data is stored, unless a purpose says otherwise."""
    issuers: tuple[Issuer, ...] = ()
    shared: tuple[Annotated[str, Meta(pattern=r"^[a-z][a-z0-9_-]*$(?!\n)", max_length=32)], ...] = ("asset",)
    """Namespaces of things that change hands: whoever has one next inherits nothing of what was said before."""
    cookie_domain: Annotated[str, Meta(pattern=r"^[a-z0-9.-]+$(?!\n)", max_length=253)] | None = None
    """The site on whose pages a device's token may live in a first-party cookie."""
    suppression: Duration = Duration(months=60)
    """How long an erased person is not advertised to without a fresh opt-in, should the address come in again."""
    public_ledger: bool = False
    """Whether everybody may read the ledger's checkpoints and tiles. They name nobody, but tell how much happens."""


class Policy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, dict=True):
    """Everything that one tenant declares; the unit that is applied, versioned and decided by."""

    tenant: Tenant
    purposes: dict[str, Purpose]
    notices: dict[str, dict[int, Notice]]
    jurisdictions: dict[str, Jurisdiction]

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) of the canonical JSON."""
        return hashlib.sha256(canonical(self)).hexdigest()

    @cached_property
    def lineage(self) -> dict[str, tuple[str, ...]]:
        """Each purpose with its ancestors, nearest first, itself leading."""
        return {purpose: tuple(self._ancestors(purpose)) for purpose in self.purposes}

    @cached_property
    def family(self) -> dict[str, tuple[str, ...]]:
        """Each purpose with all its descendants, itself leading."""
        return {p: (p, *(c for c in self.purposes if c != p and p in self.lineage[c])) for p in self.purposes}

    def _ancestors(self, purpose: str) -> list[str]:
        line: list[str] = []
        current: str | None = purpose
        while current is not None and current not in line and current in self.purposes:
            line.append(current)
            current = self.purposes[current].parent
        return line


def canonical(value: Any) -> bytes:
    """Canonical JSON (RFC 8785 for our data: ASCII keys, integers)."""
    plain = msgspec.to_builtins(value, str_keys=True, enc_hook=enc_hook)  # the encoder sorts text keys only
    return msgspec.json.encode(plain, order="sorted")


def enc_hook(value: Any) -> Any:
    """Durations travel as ISO 8601 text."""
    if isinstance(value, Duration):
        return str(value)
    raise TypeError(f"no JSON for {type(value).__name__}")


def dec_hook(kind: type, value: Any) -> Any:
    """The way back from `enc_hook`, for JSON and TOML."""
    if kind is Duration and isinstance(value, str):
        return Duration.parse(value)
    raise ValueError(f"expected a {kind.__name__.lower()} such as P13M, P30D or PT10M")


_POLICY = msgspec.json.Decoder(Policy, dec_hook=dec_hook)


def decode_policy(raw: bytes) -> Policy:
    """The policy that `canonical` wrote."""
    return _POLICY.decode(raw)


_ISSUERS = msgspec.json.Decoder(tuple[Issuer, ...], dec_hook=dec_hook)


def decode_issuers(raw: bytes) -> tuple[Issuer, ...]:
    """Issuers that `canonical` wrote."""
    return _ISSUERS.decode(raw)
