"""Lists of existing consents come in: a CSV file of any size, row by row, each row one act of a person."""

from consent_service.imports.mapping import Mapping, override, read_mapping
from consent_service.imports.reading import Found, Job, Tally, as_text, run

__all__ = ["Found", "Job", "Mapping", "Tally", "as_text", "override", "read_mapping", "run"]
