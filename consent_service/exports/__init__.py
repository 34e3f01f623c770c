"""Exports: a range of the ledger and the events in it, as one file that proves itself (ledger/README.md)."""

from consent_service.exports.draft import saving
from consent_service.exports.model import Export, ExportBody, ExportRow
from consent_service.exports.order import OPERATOR, Exporter, fetch, find, order

__all__ = ["OPERATOR", "Export", "ExportBody", "ExportRow", "Exporter", "fetch", "find", "order", "saving"]
