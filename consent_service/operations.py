"""Every operation that there is: who may call it, with what, for what answer. Handlers are in `app`."""

from consent_service import consents, decisions, erasures, exports, links, records
from consent_service.auth import MAX_TOKEN
from consent_service.callers import LogoutForm, RevokeBody, Revoked
from consent_service.guard import Operation
from consent_service.ledger.proof import MAX_PROOF

BULK = 8 * 1024 * 1024
"""Largest body of a call that carries many items, in bytes."""
LONG = 2 * MAX_PROOF
"""Of a call with a receipt in it; one with much evidence is longer than the act was."""
FORM = 3 * MAX_TOKEN + 1_024
"""Of a form with one token in it, even if every character is escaped."""

RECORD = Operation(
    method="POST", path="/v1/consents", id="recordConsents", tag="consents", status=201, browser=True, keyed=True,
    brief=True,
    summary="Record one act of a person: what they decided about one or more purposes.",
    scopes=frozenset({"write:attested", "write:device"}), body=consents.ConsentBody, answer=consents.Recorded,
)  # fmt: skip
DEVICE = Operation(
    method="POST", path="/v1/devices", id="mintDevice", tag="devices", status=201, browser=True, brief=True,
    summary="Give a device an identifier of its own and the secret that proves it, with the first thing it agrees to.",
    scopes=frozenset({"write:device"}), body=consents.DeviceBody, answer=consents.Minted,
)  # fmt: skip
RECEIPT = Operation(
    method="POST", path="/v1/receipts", id="showReceipt", tag="records", browser=True, max_body=LONG,
    scopes=frozenset({"write:attested", "write:device", "state"}),
    summary="What a receipt says, once it is verified: as JSON-LD, and in words for people.",
    body=records.ReceiptBody, answer=records.ReceiptShown,
)  # fmt: skip
CHECK = Operation(
    method="POST", path="/v1/check", id="check", tag="decisions", browser=True,
    scopes=frozenset({"check", "write:device"}), summary="May this person's data be processed for this purpose now?",
    body=decisions.Check, answer=decisions.Answer, errors=frozenset({409}),
)  # fmt: skip
CHECKS = Operation(
    method="POST", path="/v1/checks", id="checkMany", tag="decisions", scopes=frozenset({"check"}), max_body=BULK,
    summary="Many checks, answered in order at one revision.",
    body=decisions.Checks, answer=decisions.Decisions, errors=frozenset({409}),
)  # fmt: skip
STATE = Operation(
    method="POST", path="/v1/subjects/state", id="readState", tag="subjects", browser=True,
    scopes=frozenset({"state", "write:device"}), summary="Where a person stands on every purpose and channel.",
    body=decisions.SubjectBody, answer=decisions.SubjectState,
)  # fmt: skip
HISTORY = Operation(
    method="POST", path="/v1/subjects/history", id="readHistory", tag="subjects", scopes=frozenset({"state"}),
    summary="A person's events as they were recorded, oldest first.",
    body=decisions.HistoryBody, answer=decisions.History,
)  # fmt: skip
CHALLENGE = Operation(
    method="POST", path="/v1/links/challenge", id="challengeLink", tag="links", browser=True,
    summary="What a log-in must carry as `nonce` to prove that it links this identifier.",
    scopes=frozenset({"links", "write:device"}), body=links.ChallengeBody, answer=links.Challenge,
)  # fmt: skip
LINK = Operation(
    method="POST", path="/v1/links", id="link", tag="links", status=201, browser=True,
    summary="Link an identifier to an account, a group or a guardian.",
    scopes=frozenset({"links", "write:device"}), body=links.LinkBody, answer=links.Linked, errors=frozenset({409}),
)  # fmt: skip
END = Operation(
    method="POST", path="/v1/links/{id}/end", id="endLink", tag="links", browser=True,
    summary="End a link: what was permitted through it stops, a no keeps holding.",
    scopes=frozenset({"links", "write:device"}), body=links.EndBody, answer=links.Linked, errors=frozenset({404}),
)  # fmt: skip
ANNUL = Operation(
    method="POST", path="/v1/links/{id}/annul", id="annulLink", tag="links", pending=True,
    summary="Annul a link that was false, as if it had never been: one officer asks (202), another one agrees.",
    scopes=frozenset({"requests:approve"}), body=links.AnnulBody, answer=links.Linked, errors=frozenset({404}),
)  # fmt: skip
LINKS = Operation(
    method="POST", path="/v1/subjects/links", id="readLinks", tag="subjects", scopes=frozenset({"state"}),
    summary="Every link that an identifier ever took part in, and what happened to it.",
    body=links.LinksBody, answer=links.Links,
)  # fmt: skip
CONFLICTS = Operation(
    method="POST", path="/v1/subjects/conflicts", id="readConflicts", tag="subjects", scopes=frozenset({"state"}),
    summary="What linked identifiers said differently, and nobody has resolved yet.",
    body=links.ConflictsBody, answer=links.Conflicts,
)  # fmt: skip
ERASE = Operation(
    method="POST", path="/v1/subjects/erase", id="eraseSubject", tag="subjects", scopes=frozenset({"requests:approve"}),
    summary="Erase a person for ever, with everything that belongs to the same account; or tell what would go.",
    body=erasures.EraseBody, answer=erasures.Erased,
)  # fmt: skip
EXPORT = Operation(
    method="POST", path="/v1/exports", id="orderExport", tag="exports", status=201, scopes=frozenset({"export"}),
    summary="Order an export of the ledger as it is now: a file which proves that nothing was changed or left out.",
    body=exports.ExportBody, answer=exports.Export,
)  # fmt: skip
READ_EXPORT = Operation(
    method="GET", path="/v1/exports/{id}", id="readExport", tag="exports", scopes=frozenset({"export"}),
    summary="What an export covers, and how far it is.", answer=exports.Export, errors=frozenset({404}),
)  # fmt: skip
EXPORT_FILE = Operation(
    method="GET", path="/v1/exports/{id}/file", id="fetchExport", tag="exports", scopes=frozenset({"export"}),
    summary="The file of an export (ZIP); `consent verify` checks it.", media_type="application/zip", streams=True,
    errors=frozenset({404}),
)  # fmt: skip
REVOKE = Operation(
    method="POST", path="/v1/tokens/revoke", id="revokeToken", tag="tokens",
    scopes=frozenset({"keys", "requests:approve"}),
    summary="Take one access token no more.", body=RevokeBody, answer=Revoked,
)  # fmt: skip
LOGOUT = Operation(
    method="POST", path="/v1/logout", id="backChannelLogout", tag="tokens", public=True, scopes=None, form=True,
    max_body=FORM,
    summary="Take nothing more of a session that its OpenID provider has ended.", body=LogoutForm,
)  # fmt: skip
CHECKPOINT = Operation(
    method="GET", path="/ledger/{tenant}/checkpoint", id="readCheckpoint", tag="ledger", public=True, scopes=None,
    media_type="text/plain", errors=frozenset({404}),
    summary="The ledger's latest published checkpoint (c2sp.org/tlog-checkpoint).",
)  # fmt: skip
TILE = Operation(
    method="GET", path="/ledger/{tenant}/tile/{tile*}", id="readTile", tag="ledger", public=True, scopes=None,
    media_type="application/octet-stream", errors=frozenset({404}),
    summary="Hashes of the ledger's tree by 256, `L/N`, or `entries/N`; in part `….p/W` (c2sp.org/tlog-tiles).",
)  # fmt: skip
EPOCH_CHECKPOINT = Operation(
    method="GET", path="/ledger/{tenant}/{epoch}/checkpoint", id="readEpochCheckpoint", tag="ledger", public=True,
    scopes=None, media_type="text/plain", errors=frozenset({404}),
    summary="The same of an epoch, in which the ledger is a log of its own; without a number it is the first.",
)  # fmt: skip
EPOCH_TILE = Operation(
    method="GET", path="/ledger/{tenant}/{epoch}/tile/{tile*}", id="readEpochTile", tag="ledger", public=True,
    scopes=None, media_type="application/octet-stream", errors=frozenset({404}),
    summary="Tiles of the log of that epoch.",
)  # fmt: skip
LIVE = Operation(
    method="GET", path="/livez", id="live", tag="operation", public=True, scopes=None,
    summary="Whether the process answers; does not follow the database.",
)  # fmt: skip
READY = Operation(
    method="GET", path="/readyz", id="ready", tag="operation", public=True, scopes=None,
    summary="Whether the process can serve: 200, or 503 while it starts, stops or has no database.",
)  # fmt: skip
METRICS = Operation(
    method="GET", path="/metrics", id="metrics", tag="operation", public=True, scopes=None, media_type="text/plain",
    summary="Prometheus metrics of all workers.",
)  # fmt: skip
DOCS = Operation(
    method="GET", path="/docs", id="docs", tag="operation", public=True, scopes=None, media_type="text/html",
    summary="This description as a page that loads nothing from elsewhere.",
)  # fmt: skip
DESCRIPTION = Operation(
    method="GET", path="/openapi.json", id="openapi", tag="operation", public=True, scopes=None,
    summary="This description.",
)  # fmt: skip

ALL = (
    RECORD, DEVICE, RECEIPT, CHECK, CHECKS, STATE, HISTORY, LINKS, CONFLICTS, CHALLENGE, LINK, END, ANNUL, ERASE,
    EXPORT, READ_EXPORT, EXPORT_FILE, REVOKE, LOGOUT, CHECKPOINT, TILE, EPOCH_CHECKPOINT, EPOCH_TILE, LIVE, READY,
    METRICS, DOCS, DESCRIPTION,
)  # fmt: skip
