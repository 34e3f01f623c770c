"""The tenant's append-only ledger: the head that orders every write, and the group commit in front of it."""

from consent_service.ledger.batch import Batcher, group_commit
from consent_service.ledger.book import Ledger, Ledgers, PerLedger
from consent_service.ledger.head import OLDER, REVISION, Head, Revision, Tip, append, lock_head, read_head
from consent_service.ledger.receipt import Log, Opening, issue
from consent_service.ledger.tiles import prove
from consent_service.ledger.tree import Growth

__all__ = [
    "OLDER",
    "REVISION",
    "Batcher",
    "Growth",
    "Head",
    "Ledger",
    "Ledgers",
    "Log",
    "Opening",
    "PerLedger",
    "Revision",
    "Tip",
    "append",
    "group_commit",
    "issue",
    "lock_head",
    "prove",
    "read_head",
]
