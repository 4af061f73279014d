"""Check 23: no request path reads a file that is not meant to be served."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from heimdallr_ray.api.app import ApiServices, create_app
from tests.support.seeded import ABDOMEN_UID, add_result, add_study, services

SECRET = "the secret that lies beside the pages"


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> ApiServices:
    """A measured study, and secrets above, beside and inside the folders that are served from."""
    root = tmp_path_factory.mktemp("hostile")
    made = services(root / "data")
    with made.database.write() as session:
        add_result(session, made, add_study(session, ABDOMEN_UID, made.clock.now()))
    site = root / "site"
    (site / "assets").mkdir(parents=True)
    (site / "docs").mkdir()
    for path in (
        site / "index.html",
        site / "assets" / "app.js",
        site / "docs" / "index.html",
        site / "docs" / "init.js",
    ):
        path.write_text("page")
    for path in (root / ".env", root / "data" / ".env", site / ".env", site / "assets" / ".env.bak"):
        path.write_text(SECRET)
    (site / "assets" / "link.js").symlink_to(root / ".env")
    return replace(made, static_dir=site)


@pytest.fixture(scope="module")
def client(installation: ApiServices) -> Generator[TestClient]:
    with TestClient(
        create_app(installation), base_url="http://localhost", client=("127.0.0.1", 1), raise_server_exceptions=False
    ) as client:
        yield client


UPS = ["..", "%2e%2e", "%2E%2E", "..%2f", "%2e%2e%2f", "..%5c", "%252e%252e", ".%00.", "....//", "%c0%ae%c0%ae", "..;"]
PREFIXES = [
    "",
    "/assets",
    "/docs",
    "/studies",
    f"/api/v1/studies/{ABDOMEN_UID}/artifacts",
    "/api/v1/studies",
    "/api/v1",
]
TARGETS = [".env", "data/.env", "data/catalog.sqlite", "etc/passwd", "../../../../etc/passwd"]


@pytest.mark.parametrize("prefix", PREFIXES)
@pytest.mark.parametrize("up", UPS)
def test_no_way_up_leads_to_a_file(client: TestClient, prefix: str, up: str):
    for target in TARGETS:
        for depth in (1, 2, 4):
            answer = client.get(f"{prefix}/{'/'.join([up] * depth)}/{target}", follow_redirects=False)
            assert SECRET not in answer.text
            assert "root:" not in answer.text
            assert not answer.content.startswith(b"SQLite format 3")
            # Either nothing, or (where the client itself folded the dots away) a page of ours.
            assert answer.status_code in (400, 404, 405, 422) or answer.text == "page"


@pytest.mark.parametrize(
    "path",
    [
        "/assets//etc/passwd",
        "/assets/%2fetc%2fpasswd",
        "/docs/%2fetc%2fpasswd",
        "/assets/link.js",
        "/assets/.env.bak",
        "/.env",
    ],
)
def test_absolute_names_links_and_hidden_files_lead_nowhere(client: TestClient, path: str):
    assert client.get(path).status_code == 404


def test_a_blob_is_not_served_by_its_digest(client: TestClient, installation: ApiServices):
    artifact = client.get(f"/api/v1/studies/{ABDOMEN_UID}").json()["artifacts"][0]
    for name in (
        artifact["sha256"],
        f"blobs/{artifact['sha256']}",
        "%2e%2e%2fresults.json",
        "RESULTS.JSON",
        "results.json%00",
    ):
        assert client.get(f"/api/v1/studies/{ABDOMEN_UID}/artifacts/{name}").status_code in (404, 422)


def test_the_pages_are_served(client: TestClient):
    for path in ("/", f"/studies/{ABDOMEN_UID}", "/docs", "/assets/app.js", "/docs/init.js"):
        assert client.get(path).text == "page"


def test_what_was_not_built_is_said(installation: ApiServices):
    client = TestClient(
        create_app(replace(installation, static_dir=None)), base_url="http://localhost", client=("127.0.0.1", 1)
    )
    answer = client.get("/")
    assert answer.status_code == 503
    assert answer.json()["error"]["code"] == "not_ready"


def test_unknown_api_paths_and_methods_have_the_one_shape(client: TestClient):
    assert client.get("/api/v1/nothing").json()["error"]["code"] == "not_found"
    assert client.delete(f"/api/v1/studies/{ABDOMEN_UID}").json()["error"]["code"] == "method_not_allowed"


def test_secret_path_names_are_real(installation: ApiServices):
    """Without this the tests above could pass because there was nothing to find."""
    assert installation.static_dir is not None
    assert (Path(installation.static_dir).parent / ".env").read_text() == SECRET
