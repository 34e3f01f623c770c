"""Strict decoding: every field error, nothing of what the caller sent."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
import pytest
from msgspec import Meta

from consent_service import decode
from consent_service.errors import Invalid, Malformed


class Inner(msgspec.Struct, forbid_unknown_fields=True):
    kind: Literal["a", "b"]
    size: Annotated[int, Meta(ge=1)] | None = None


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    name: str
    inner: list[Inner]
    labels: dict[str, int] = {}


def wrong(raw: bytes) -> dict[str, str]:
    with pytest.raises(Invalid) as caught:
        decode.body(raw, Outer)
    return {error.pointer: error.detail for error in caught.value.errors}


def test_the_good_path() -> None:
    assert decode.body(b'{"name":"x","inner":[{"kind":"a"}]}', Outer) == Outer("x", [Inner("a")])


def test_every_error_is_named_at_once() -> None:
    found = wrong(b'{"inner":[{"kind":"c"},{"kind":"a","size":0},7],"labels":{"x/y":"1"},"nmae":1}')
    assert found == {
        "": "has a member that is not known here; did you mean `name`?",
        "/name": "is missing",
        "/inner/0/kind": "must be one of `a`, `b`",
        "/inner/1/size": "Expected `int` >= 1",
        "/inner/2": "Expected `object`, got `int`",
        "/labels/x~1y": "Expected `int`, got `str`",
    }


def test_an_unknown_key_is_not_echoed() -> None:
    found = wrong(b'{"name":"x","inner":[],"erika@example.org":1}')
    assert "erika" not in str(found)


@pytest.mark.parametrize("raw", [b"", b"[", b'{"name":1', b"nul", b"\xff", b'{"name":"\xff"}', b"{} {}"])
def test_what_is_no_json_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        decode.body(raw, Outer)


@pytest.mark.parametrize("raw", [b"[]", b"1", b'"x"', b"null"])
def test_json_of_another_shape_is_invalid(raw: bytes) -> None:
    assert list(wrong(raw)) == [""]


def test_files_of_the_operator_are_told_the_key() -> None:
    with pytest.raises(Invalid) as caught:
        decode.convert({"name": "x", "inner": [], "nmae": 1}, Outer)
    assert caught.value.errors[0].pointer == "/nmae"
