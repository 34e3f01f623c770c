"""Records: what an act says, as JSON-LD for machines and in words for people. Made from its event and its policy."""

from consent_service.records.dpv import receipt

__all__ = ["receipt"]
