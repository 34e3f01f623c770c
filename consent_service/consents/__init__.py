"""Consents, the write path: one call is one act of a person, becomes one event, and answers with what holds now."""

from consent_service.consents.batch import Repeated, Suppressed
from consent_service.consents.model import ConsentBody, DeviceBody, Minted, Record, Recorded, Shown
from consent_service.consents.write import Writer

__all__ = [
    "ConsentBody", "DeviceBody", "Minted", "Record", "Recorded", "Repeated", "Shown", "Suppressed", "Writer",
]  # fmt: skip
