"""Pictures of a running demo for README and docs.

heimdallr demo                                     # in one terminal; leave it running
python -m tools.screenshots http://127.0.0.1:8001  # in another
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

FOLDER = Path(__file__).resolve().parents[1] / "docs" / "images"
WAIT_MS = 60_000


def worklist(page: Page, url: str) -> None:
    """Both studies of the demo, the bleed on top."""
    page.goto(url)
    page.get_by_text("CRITICAL").first.wait_for(timeout=WAIT_MS)
    page.get_by_text("LIVE").first.wait_for(timeout=WAIT_MS)
    page.screenshot(path=FOLDER / "worklist.png")


def study(page: Page, url: str, text: str, name: str, image: str) -> None:
    """The page of the study that `text` stands in, with the key image `image`."""
    page.goto(url)
    page.get_by_text(text).first.dblclick(timeout=WAIT_MS)
    page.get_by_text("MEASUREMENTS", exact=False).first.wait_for(timeout=WAIT_MS)
    page.get_by_text(image, exact=False).first.click(timeout=WAIT_MS)
    page.wait_for_timeout(1_500)  # the picture is decoded and drawn; the live stream never goes idle
    page.screenshot(path=FOLDER / name)


def main(arguments: list[str]) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="of the running demo")
    url = parser.parse_args(arguments).url
    browser_path = shutil.which("chromium")
    if browser_path is None:
        sys.stderr.write("chromium is not installed: apt-get install chromium\n")
        return 1
    FOLDER.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=browser_path, args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        worklist(page, url)
        study(page, url, "CT HEAD", "study-head.png", "Hemorrhage")
        study(page, url, "CT CHEST ABDOMEN", "study-torso.png", "Liver")
        browser.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
