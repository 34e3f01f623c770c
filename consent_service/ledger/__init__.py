"""The tenant's append-only ledger: the head that orders every write, and the group commit in front of it."""

from consent_service.ledger.batch import Batcher, group_commit
from consent_service.ledger.book import Ledger, Ledgers, PerLedger
from consent_service.ledger.head import REVISION, Head, Revision, lock_head, read_head

__all__ = [
    "REVISION",
    "Batcher",
    "Head",
    "Ledger",
    "Ledgers",
    "PerLedger",
    "Revision",
    "group_commit",
    "lock_head",
    "read_head",
]
