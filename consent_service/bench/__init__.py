"""`consent bench`: what a record and a check cost, beside the least that could do the same job."""

from consent_service.bench.exports import ExportReport, export_table, run_export
from consent_service.bench.measure import Report, run, table

__all__ = ["ExportReport", "Report", "export_table", "run", "run_export", "table"]
