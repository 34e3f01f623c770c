"""Tokens of other people's issuers: whether one is genuine, for us, and whose. Pure: no database, no HTTP of our own.

An access token (RFC 9068) is how a machine, a person or an officer calls; an ID token (OpenID Connect Core 1.0) is how
a person is linked to a device; a logout token (OpenID Connect Back-Channel Logout 1.0) ends what a login began. What is
accepted stands in the tenant's policy (`Issuer`). A token says which key it was signed with, and nothing else about how
it is to be verified.
"""

from consent_service.tokens.claims import LEEWAY, Claims, demand_assurance
from consent_service.tokens.fetch import fetch_keys
from consent_service.tokens.keys import Jwks
from consent_service.tokens.verify import Verifier, addressed

__all__ = ["LEEWAY", "Claims", "Jwks", "Verifier", "addressed", "demand_assurance", "fetch_keys"]
