"""Records: what an act says, as JSON-LD for machines and in words for people. Made from its event and its policy."""

from consent_service.records.dpv import receipt
from consent_service.records.prose import Place, as_html, as_text, languages, sheet
from consent_service.records.show import ReceiptBody, ReceiptShown, Shower, fits, opened

__all__ = [
    "Place",
    "ReceiptBody",
    "ReceiptShown",
    "Shower",
    "as_html",
    "as_text",
    "fits",
    "languages",
    "opened",
    "receipt",
    "sheet",
]
