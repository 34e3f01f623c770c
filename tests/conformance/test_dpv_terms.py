"""Every DPV term that policies emit stands in the term lists of DPV 2.3."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

import pytest

from consent_service.policies import Policy, find, load
from consent_service.policies.model import BASIS_TERM

BESIDE = Path(__file__).resolve().parents[3] / "shared" / "vectors"


@pytest.fixture(scope="module")
def lists() -> Path:
    """The folder of the term lists."""
    folder = Path(os.environ.get("CONSENT_VECTORS", BESIDE)) / "dpv-2.3"
    if not folder.is_dir():
        reason = "the DPV 2.3 term lists are not here; set CONSENT_VECTORS to the folder of external cases"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return folder


@pytest.fixture(scope="module", params=["demo", "demo-at", "demo-fr"])
def policy(request: pytest.FixtureRequest) -> Policy:
    """Each example tenant's."""
    return load(find(request.param))


def classes(*files: Path) -> set[str]:
    """The classes that term lists define, without prefix."""
    rows = [row for file in files for row in csv.DictReader(io.StringIO(file.read_text(encoding="utf-8")))]
    return {row["term"] for row in rows if row["type"] == "class"}


def test_purposes_are_dpv_purposes(lists: Path, policy: Policy):
    known = {f"dpv:{term}" for term in classes(lists / "purposes.csv")}
    assert {purpose.dpv for purpose in policy.purposes.values()} <= known


def test_legal_bases_are_dpv_legal_bases(lists: Path, policy: Policy):
    terms = classes(lists / "eu-gdpr-legal_basis.csv", lists / "eu-gdpr-legal_basis_special.csv")
    known = {f"eu-gdpr:{term}" for term in terms}
    assert set(BASIS_TERM.values()) <= known
    emitted = {purpose.basis_term for purpose in policy.purposes.values()}
    assert emitted <= known
    if policy.tenant.id == "demo":
        assert {"eu-gdpr:A9-2-a", "eu-gdpr:A6-1-a-explicit-consent"} <= emitted


def test_the_lists_tell_a_wrong_term(lists: Path):
    assert "DirectMarketting" not in classes(lists / "purposes.csv")
    assert "DirectMarketing" in classes(lists / "purposes.csv")
