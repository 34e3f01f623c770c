"""Decisions: may this person's data be processed for this purpose, now, on this channel?"""

from consent_service.decisions.check import Checker
from consent_service.decisions.decide import (
    ALLOWS,
    REASONS,
    Ask,
    Context,
    Decision,
    Reason,
    decide,
    is_silenced,
    open_conflicts,
)
from consent_service.decisions.model import (
    Answer,
    Check,
    Checks,
    Decisions,
    History,
    HistoryBody,
    SubjectBody,
    SubjectState,
)

__all__ = [
    "ALLOWS",
    "REASONS",
    "Answer",
    "Ask",
    "Check",
    "Checker",
    "Checks",
    "Context",
    "Decision",
    "Decisions",
    "History",
    "HistoryBody",
    "Reason",
    "SubjectBody",
    "SubjectState",
    "decide",
    "is_silenced",
    "open_conflicts",
]
