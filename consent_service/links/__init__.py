"""Links: a device and an account, a thing and who rents it, a child and its guardian. Proved, dated, and undoable."""

from consent_service.links.conflicts import Conflicted
from consent_service.links.model import (
    AnnulBody,
    Challenge,
    ChallengeBody,
    Conflicts,
    ConflictsBody,
    EndBody,
    LinkBody,
    Linked,
    LinkEvent,
    Links,
    LinksBody,
)
from consent_service.links.write import Linker

__all__ = [
    "AnnulBody",
    "Challenge",
    "ChallengeBody",
    "Conflicted",
    "Conflicts",
    "ConflictsBody",
    "EndBody",
    "LinkBody",
    "LinkEvent",
    "Linked",
    "Linker",
    "Links",
    "LinksBody",
]
