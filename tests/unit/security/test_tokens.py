from __future__ import annotations

from datetime import timedelta

import pytest

from heimdallr_ray.errors import BadSetting
from heimdallr_ray.security.tokens import (
    MAX_TOKEN_LENGTH,
    PREFIX,
    RESERVED_NAMES,
    Scope,
    bearer,
    decode_scopes,
    encode_scopes,
    matches,
    mint,
    parse_lifetime,
    parse_name,
    parse_scopes,
)

TOKEN = "0123456789abcdef"


@pytest.mark.parametrize(
    ("header", "token"),
    [
        (f"Bearer {TOKEN}", TOKEN),
        (f"bearer  {TOKEN} ", TOKEN),
        (TOKEN, None),
        (f"Basic {TOKEN}", None),
        ("Bearer", None),
        ("Bearer ", None),
        ("", None),
        (None, None),
    ],
)
def test_bearer_takes_the_token_of_the_bearer_scheme_only(header: str | None, token: str | None):
    assert bearer(header) == token


def test_only_an_equal_token_matches():
    assert matches(TOKEN, [TOKEN])
    assert matches(TOKEN, ["another-secret-token", TOKEN])
    assert not matches(TOKEN + "0", [TOKEN])
    assert not matches(TOKEN[:-1], [TOKEN])
    assert not matches("\udce4", [TOKEN])


def test_an_empty_secret_opens_nothing():
    assert not matches("", [""])
    assert not matches(None, [""])
    assert not matches("x", [])
    assert not matches("", [TOKEN])


def test_an_endless_token_is_not_hashed():
    long = "x" * (MAX_TOKEN_LENGTH + 1)
    assert not matches(long, [long])


def test_tokens_are_random_and_known_by_their_beginning():
    made = {mint() for _ in range(100)}
    assert len(made) == 100
    assert all(token.startswith(PREFIX) and len(token) >= 48 for token in made)


@pytest.mark.parametrize("name", ["ct-1", "PACS.main", "a", "x" * 32])
def test_names(name: str):
    assert parse_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 33, "a b", "-a", "a/b", "a\n", "\u00e4", *sorted(RESERVED_NAMES), "Local"])
def test_what_is_no_name(name: str):
    with pytest.raises(BadSetting):
        parse_name(name)


def test_scopes():
    assert parse_scopes(["ingest, read", "metrics"]) == {Scope.INGEST, Scope.READ, Scope.METRICS}
    assert encode_scopes({Scope.READ, Scope.INGEST}) == "ingest,read"
    assert decode_scopes("ingest,read") == {Scope.READ, Scope.INGEST}
    assert decode_scopes("everything") == set()
    for words in ([], [""], ["write"], ["read,write"]):
        with pytest.raises(BadSetting, match="a scope is one of admin, ingest, metrics, read"):
            parse_scopes(words)


def test_lifetimes():
    assert parse_lifetime("90d") == timedelta(days=90)
    assert parse_lifetime("12H") == timedelta(hours=12)
    assert (parse_lifetime("6w"), parse_lifetime("1y")) == (timedelta(weeks=6), timedelta(days=365))
    for text in ("", "90", "d", "0d", "-1d", "1m", "11y", "99999d"):
        with pytest.raises(BadSetting):
            parse_lifetime(text)
