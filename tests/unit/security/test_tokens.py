from __future__ import annotations

import pytest

from heimdallr_ray.security.tokens import MAX_TOKEN_LENGTH, bearer, matches

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
