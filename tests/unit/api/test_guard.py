from __future__ import annotations

from typing import Any

import pytest
from starlette.datastructures import Headers

from heimdallr_ray.api.guard import host_allowed, host_name, same_origin
from heimdallr_ray.config import Settings, load


def settings(**values: Any) -> Settings:
    return load({}, None, profile="demo", **values)


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("localhost:8001", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:8001", "::1"),
        ("HOST.example", "host.example"),
        ("", None),
        ("user@localhost", None),
        ("localhost/evil", None),
        ("localhost:99999", None),
        ("localhost:x", None),
        ("[::1", None),
    ],
)
def test_host_name_is_the_name_alone(header: str, name: str | None):
    assert host_name(header) == name


@pytest.mark.parametrize("host", ["localhost:8001", "127.0.0.1:8001", "[::1]:8001", "192.0.2.7"])
def test_names_that_nobody_can_rebind_are_answered(host: str):
    assert host_allowed(host, settings())


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "a@localhost"]
)
def test_other_names_are_refused_without_a_token(host: str):
    assert not host_allowed(host, settings())


def test_the_hospital_s_own_name_is_answered_once_a_token_guards_it():
    assert host_allowed("heimdallr.hospital.example", settings(api_token="0123456789abcdef"))
    assert not host_allowed("", settings(api_token="0123456789abcdef"))


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({"host": "localhost:8001"}, True),
        ({"host": "localhost:8001", "origin": "http://localhost:8001"}, True),
        ({"host": "localhost:8001", "origin": "http://localhost:8001", "sec-fetch-site": "same-origin"}, True),
        ({"host": "localhost:8001", "origin": "http://evil.example"}, False),
        ({"host": "localhost:8001", "origin": "http://localhost:9000"}, False),
        ({"host": "localhost:8001", "origin": "null"}, False),
        ({"host": "localhost:8001", "sec-fetch-site": "cross-site"}, False),
        ({"host": "localhost:8001", "sec-fetch-site": "same-site"}, False),
        ({"host": "localhost:8001", "origin": "http://localhost:8001", "sec-fetch-site": "cross-site"}, False),
    ],
)
def test_only_our_own_pages_may_change_something(headers: dict[str, str], allowed: bool):
    assert same_origin(Headers(headers)) is allowed
