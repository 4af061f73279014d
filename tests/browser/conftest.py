"""Debian's Chromium against a real server over a seeded installation."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright import sync_api as playwright_api

from heimdallr_ray.api.app import ApiServices, create_app
from heimdallr_ray.dashboard import static_dir
from tests.conftest import find_program
from tests.support.seeded import seed, services
from tests.support.server import serving

# A machine that also runs other tests draws slowly; what never comes still fails.
playwright_api.expect.set_options(timeout=60_000)

BUILD = "the web app is not built: run `make setup`"
FLAGS = [
    "--no-sandbox",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--use-angle=swiftshader",
    "--enable-unsafe-swiftshader",
]


@dataclass
class Site:
    """A served installation."""

    url: str
    services: ApiServices


@dataclass
class Watch:
    """What a page did that it should not have done."""

    url: str
    off_host: list[str] = field(default_factory=list)
    console: list[str] = field(default_factory=list)

    def attach(self, page: playwright_api.Page) -> None:
        page.on("request", self._request)
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.console.append(str(error)))

    def _request(self, request: playwright_api.Request) -> None:
        if not request.url.startswith((self.url, "data:", "blob:")):
            self.off_host.append(request.url)

    def _console(self, message: playwright_api.ConsoleMessage) -> None:
        if (
            message.type in ("error", "warning")
            and "swiftshader" not in message.text.lower()
            and "GPU stall" not in message.text
        ):
            self.console.append(f"{message.type}: {message.text}")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    if static_dir() is None:
        pytest.skip(BUILD)
    made = services(tmp_path_factory.mktemp("browser") / "data")
    seed(made)
    with serving(create_app(made)) as url:
        yield Site(url, made)


# Not for the session: while Playwright runs, this thread has a running event loop, and no other test can start one.
@pytest.fixture(scope="module")
def chromium() -> Generator[playwright_api.Browser]:
    program = find_program("chromium")
    if program is None:
        pytest.skip("not installed: chromium")
    with playwright_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: playwright_api.Browser, site: Site, tmp_path: Path) -> Generator[playwright_api.Page]:
    """A fresh page; the test fails where it spoke to another host or wrote an error to the console."""
    context = chromium.new_context(viewport={"width": 1440, "height": 860}, accept_downloads=True)
    context.set_default_timeout(30_000)
    opened = context.new_page()
    watch = Watch(site.url)
    watch.attach(opened)
    yield opened
    context.close()
    assert watch.off_host == []
    assert watch.console == []
