"""The terms that records use: those of DPV 2.3 (w3id.org/dpv), of its GDPR extension, and the context they expand by.

A record conforms to the profiles `record-eu-gdpr` and `receipt-eu-gdpr` of DPV-27560, which carry the fields of ISO/IEC
TS 27560:2023.
"""

from __future__ import annotations

from typing import Any, Final

from consent_service.policies import Basis, Source
from consent_service.states import Status

RECEIPT_PROFILE: Final = "https://w3id.org/dpv/schema/dpv-27560#receipt-eu-gdpr"
RECORD_PROFILE: Final = "https://w3id.org/dpv/schema/dpv-27560#record-eu-gdpr"
GDPR: Final = "http://data.europa.eu/eli/reg/2016/679/oj"

CONSENT_STATUS: dict[Status, str] = {
    "given": "dpv:ConsentGiven",
    "confirmed": "dpv:ConsentGiven",
    "renewed": "dpv:RenewedConsentGiven",
    "requested": "dpv:ConsentRequested",
    "refused": "dpv:ConsentRefused",
    "withdrawn": "dpv:ConsentWithdrawn",
}
"""What a person says about consent. A receipt is a termination receipt where its processes carry `ConsentWithdrawn`:
the `ConsentTerminated` of the guide to DPV-27560 is no term of DPV."""

BASIS_STATUS: dict[Status, dict[Basis, str]] = {
    "applies": {
        "contract": "dpv:ContractActive",
        "legal_obligation": "dpv:LegalObligationOngoing",
        "vital_interests": "dpv:VitalInterestOngoing",
        "public_task": "dpv:PublicInterestOngoing",
        "legitimate_interest": "dpv:LegitimateInterestNotObjected",
    },
    "ceased": {
        "contract": "dpv:ContractTerminationStatus",
        "legal_obligation": "dpv:LegalObligationCompleted",
        "vital_interests": "dpv:VitalInterestCompleted",
        "public_task": "dpv:PublicInterestCompleted",
        "legitimate_interest": "dpv:ActivityCompleted",
    },
    "objected": {
        "vital_interests": "dpv:VitalInterestObjected",
        "public_task": "dpv:PublicInterestObjected",
        "legitimate_interest": "dpv:LegitimateInterestObjected",
    },
}
"""Where the same word means something else on each legal basis."""

OTHER_STATUS: dict[Status, str] = {
    "applies": "dpv:ActivityOngoing",
    "ceased": "dpv:ActivityCompleted",
    "objected": "dpv:RequestInitiated",
    "restricted": "dpv:ActivityHalted",
    "restriction_lifted": "dpv:RequestFulfilled",
}
"""On any other basis. An objection where none ends the processing (Art. 21) is a request, and is kept as one."""

SOURCE_TERM: dict[Source, str] = {
    "data_subject": "dpv:DataSubjectDataSource",
    "third_party": "dpv:ThirdPartyDataSource",
    "public": "dpv:PublicDataSource",
}

ROLE_TERM = {
    "processor": "dpv:DataProcessor",
    "controller": "dpv:ThirdParty",
    "joint_controller": "dpv:DataController",
}

RIGHTS: dict[Basis, tuple[str, ...]] = {
    "consent": ("A7-3", "A13", "A15", "A16", "A17", "A18", "A20", "A22", "A77"),
    "contract": ("A13", "A15", "A16", "A17", "A18", "A20", "A22", "A77"),
    "legal_obligation": ("A13", "A15", "A16", "A18", "A77"),
    "vital_interests": ("A13", "A15", "A16", "A17", "A18", "A22", "A77"),
    "public_task": ("A13", "A15", "A16", "A18", "A21", "A22", "A77"),
    "legitimate_interest": ("A13", "A15", "A16", "A17", "A18", "A21", "A22", "A77"),
}
"""Which rights a person has by the legal basis, as articles (DPV 2.3, mapping of legal bases to rights). A14 comes with
data that somebody else gave, A21 with direct marketing, A7-3 with every consent."""

_IRI = {"@type": "@id"}
_BY_LANGUAGE = {"@container": "@language"}
_MOMENT = {"@type": "xsd:dateTime"}
CONTEXT: dict[str, Any] = {
    "dpv": "https://w3id.org/dpv#",
    "eu-gdpr": "https://w3id.org/dpv/legal/eu/gdpr#",
    "pd": "https://w3id.org/dpv/pd#",
    "loc": "https://w3id.org/dpv/loc#",
    "dct": "http://purl.org/dc/terms/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "schema": "https://schema.org/",
    "xsd": "http://www.w3.org/2001/XMLSchema#",
    **dict.fromkeys(
        ("dct:conformsTo", "dct:publisher", "schema:recipient", "dpv:hasApplicability", "dpv:hasApplicableLaw",
         "dpv:hasContext", "dpv:hasCountry", "dpv:hasDataSource", "dpv:hasJurisdiction", "dpv:hasLegalBasis",
         "dpv:hasLocation", "dpv:hasNecessity", "dpv:hasNoticeStatus", "dpv:hasProcessing", "dpv:hasRecipient",
         "dpv:hasRight", "dpv:hasThirdCountry", "dpv:isIndicatedBy"), _IRI,
    ),
    **dict.fromkeys(("dct:title", "dpv:hasAlgorithmicLogic", "dpv:isExercisedAt"), _BY_LANGUAGE),
    **dict.fromkeys(("dct:created", "dct:valid", "dpv:isIndicatedAtTime"), _MOMENT),
    "dct:date": {"@type": "xsd:date"},
    "rdf:value": {"@type": "xsd:duration"},
}  # fmt: skip
"""Inline in every receipt: nothing has to be loaded to read one."""
