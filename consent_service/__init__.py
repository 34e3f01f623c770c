"""A consent and privacy management service: record, check, withdraw, prove."""

__version__ = "0.1.0"
