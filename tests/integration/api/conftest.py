from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from heimdallr_ray.api.app import ApiServices, create_app
from tests.support.seeded import seed, services

LOOPBACK = ("127.0.0.1", 50000)
TOKEN, UPLOAD_TOKEN = "the-api-token-of-a-test", "the-upload-token-of-a-test"


def client_of(app: FastAPI, *, peer: tuple[str, int] = LOOPBACK) -> TestClient:
    """A client at `peer`; a defect in the application is answered, as a server would, and not raised."""
    return TestClient(app, base_url="http://localhost:8001", client=peer, raise_server_exceptions=False)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="session")
def seeded(tmp_path_factory: pytest.TempPathFactory) -> ApiServices:
    """Studies in every state; tests only read it."""
    made = services(tmp_path_factory.mktemp("seeded") / "data")
    seed(made)
    return made


@pytest.fixture
def client(seeded: ApiServices) -> Generator[TestClient]:
    yield client_of(create_app(seeded))


@pytest.fixture
def empty(tmp_path: Path) -> ApiServices:
    """An installation without a study, for tests that write."""
    return services(tmp_path / "data")
