"""`consent bench`: what a record and a check cost, beside the least that could do the same job."""

from consent_service.bench.measure import Report, run, table

__all__ = ["Report", "run", "table"]
