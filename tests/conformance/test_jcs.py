"""Canonical JSON (RFC 8785): the published cases, and what a payload makes of evidence of any shape."""

from __future__ import annotations

import json
import struct
import uuid
from pathlib import Path
from typing import Any

import msgspec
import pytest
from conftest import Tenant, external
from hypothesis import given
from hypothesis import strategies as st

from consent_service import decode, jcs
from consent_service.errors import Invalid
from consent_service.ledger.proof import Proof

CASES = ("arrays", "french", "structures", "unicode", "values", "weird")
WEB = {"purpose": "analytics", "status": "given", "channel": "web"}
NUMBERS = {
    "0000000000000000": "0",
    "8000000000000000": "0",
    "0000000000000001": "5e-324",
    "8000000000000001": "-5e-324",
    "7fefffffffffffff": "1.7976931348623157e+308",
    "4340000000000000": "9007199254740992",
    "4430000000000000": "295147905179352830000",
    "44b52d02c7e14af5": "9.999999999999997e+22",
    "44b52d02c7e14af6": "1e+23",
    "444b1ae4d6e2ef4e": "999999999999999700000",
    "444b1ae4d6e2ef50": "1e+21",
    "3eb0c6f7a0b5ed8c": "9.999999999999997e-7",
    "3eb0c6f7a0b5ed8d": "0.000001",
    "41b3de4355555554": "333333333.33333325",
    "becbf647612f3696": "-0.0000033333333333333333",
}
"""Doubles by their bits, and how they are written (RFC 8785, appendix B)."""


@pytest.fixture
def cases() -> Path:
    """The folder of the published cases."""
    return external("jcs")


def payload(receipt: str) -> bytes:
    """The payload that a receipt opens, as it was hashed."""
    extra = Proof.parse(receipt).extra
    assert extra is not None
    opened: dict[str, msgspec.Raw] = msgspec.json.decode(extra, type=dict[str, msgspec.Raw])
    return bytes(opened["payload"])


@pytest.mark.parametrize("name", CASES)
def test_the_published_cases(cases: Path, name: str):
    value = decode.tree((cases / "input" / f"{name}.json").read_bytes())
    assert bytes(jcs.canonical(value, "")) == (cases / "output" / f"{name}.json").read_bytes()


@pytest.mark.parametrize("name", CASES)
async def test_the_published_cases_as_evidence_in_a_payload(
    cases: Path, name: str, tenant: Tenant, person: dict[str, str]
):
    value = json.loads((cases / "input" / f"{name}.json").read_bytes())
    answer = await tenant.record(WEB, subject=person, evidence={"case": value})
    assert answer.status_code == 201, answer.text
    expected = b'"evidence":{"case":' + (cases / "output" / f"{name}.json").read_bytes() + b'},"'
    assert expected in payload(answer.json()["receipt"])


@pytest.mark.parametrize(("bits", "written"), NUMBERS.items())
def test_doubles_are_written_as_the_standard_lists_them(bits: str, written: str):
    value = struct.unpack(">d", bytes.fromhex(bits))[0]
    assert bytes(jcs.canonical(value, "")) == written.encode()


numbers = st.integers(-jcs.LARGEST, jcs.LARGEST) | st.floats(allow_nan=False, allow_infinity=False)
values = st.recursive(
    st.none() | st.booleans() | st.text() | numbers,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def double(digits: str) -> float:
    """A number as readers have it who know nothing but doubles; a double from 1e16 to 1e21 has no dot either."""
    return int(digits) if abs(int(digits)) <= jcs.LARGEST else float(digits)


@given(values)
def test_what_is_read_back_is_what_was_sent_and_is_written_the_same_again(value: Any):
    once = bytes(jcs.canonical(value, ""))
    again = json.loads(once, parse_int=double)
    assert again == value
    assert bytes(jcs.canonical(again, "")) == once


@given(st.dictionaries(st.sampled_from(["a", "B", "c_1", "évi", "€", "😀", "דּ"]), st.text(max_size=3)))
def test_names_stand_in_the_order_of_their_utf_16(value: dict[str, str]):
    names = list(msgspec.json.decode(bytes(jcs.canonical(value, ""))))
    assert names == sorted(value, key=lambda name: name.encode("utf-16-be"))


@pytest.mark.parametrize("sign", [1, -1])
def test_whole_numbers_end_where_readers_begin_to_disagree(sign: int):
    assert bytes(jcs.canonical({"n": sign * jcs.LARGEST}, "/evidence")) == b'{"n":%d}' % (sign * jcs.LARGEST)
    with pytest.raises(Invalid) as caught:
        jcs.canonical({"a/b": [0, {"~": sign * (jcs.LARGEST + 1)}]}, "/evidence")
    (wrong,) = caught.value.errors
    assert wrong.pointer == "/evidence/a~1b/1/~0"
    assert wrong.detail.endswith("send it as text")


async def test_a_number_that_many_misread_is_refused_and_a_no_stands_without_it(tenant: Tenant, person: dict[str, str]):
    no = {"purpose": "marketing.email", "status": "withdrawn"}
    answer = await tenant.record(WEB, no, subject=person, evidence={"call": 2**53})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/evidence/call"]
    kept = msgspec.json.decode(payload(answer.json()["recorded"]["receipt"]))
    assert [record["status"] for record in kept["records"]] == ["withdrawn"]
    assert kept["evidence"] is None
    assert not (await tenant.check(person, "analytics", channel="web"))["allow"]


async def test_a_link_refuses_such_a_number_too(tenant: Tenant, person: dict[str, str]):
    body = {"identifier": person, "login": uuid.uuid4().hex, "evidence": {"n": [1, 2**60]}}
    answer = await tenant.post("/v1/links", body)
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/evidence/n/1"]
    made = await tenant.post("/v1/links", {**body, "evidence": {"é": 1e21, "a": 1.0}})
    assert made.status_code == 201, made.text
    assert '"evidence":{"a":1,"é":1e+21}'.encode() in payload(made.json()["receipt"])


def test_evidence_that_cannot_be_walked_is_refused():
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(Invalid, match="cannot be accepted"):
        jcs.canonical({"deep": deep}, "/evidence")
    while isinstance(deep, list):  # or taking it apart would recurse
        deep = deep.pop()
