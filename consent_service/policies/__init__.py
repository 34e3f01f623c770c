"""Policies as code: what a tenant may do with data, why, where, for how long, and what people were shown."""

from consent_service.policies.lint import lint
from consent_service.policies.load import find, load
from consent_service.policies.model import (
    CHANNELS,
    EXPLICIT_METHODS,
    GRADES,
    METHODS,
    Basis,
    Channel,
    Conflict,
    Duration,
    Grade,
    Issuer,
    Jurisdiction,
    Method,
    Notice,
    Policy,
    Purpose,
    Recipient,
    Tenant,
    canonical,
    decode_policy,
)
from consent_service.policies.plan import Change, plan

__all__ = [
    "CHANNELS",
    "EXPLICIT_METHODS",
    "GRADES",
    "METHODS",
    "Basis",
    "Change",
    "Channel",
    "Conflict",
    "Duration",
    "Grade",
    "Issuer",
    "Jurisdiction",
    "Method",
    "Notice",
    "Policy",
    "Purpose",
    "Recipient",
    "Tenant",
    "canonical",
    "decode_policy",
    "find",
    "lint",
    "load",
    "plan",
]
