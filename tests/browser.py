"""Headless Chromium for tests of pages: what a reader sees and can click, beside what the file says.

    def test_a_click_sorts(open_page, tmp_path):
        page = open_page(tmp_path / "report.html")      # a page of Playwright's synchronous API
        page.click("th >> text=PSNR")
        assert page.inner_text("tbody tr:first-child td") == "B"

Such a test also fails where a script of the page fails, or where the page asks for anything but itself. It is skipped,
with the reason, where no Chromium is found; where `CI` is set, it fails instead.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

EXECUTABLES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome", "google-chrome-stable")
HINT = "install it with: apt-get install chromium-headless-shell (or chromium), or name it in CHROMIUM"


def chromium_path() -> str:
    """The browser: $CHROMIUM, or the first of `EXECUTABLES` in the PATH.

    Where there is none, or no Playwright, the test is skipped; where CI is set, it fails.
    """
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, EXECUTABLES)]
    path = next((candidate for candidate in candidates if candidate), None)
    problem = None
    if path is None:
        problem = f"no Chromium found; {HINT}"
    elif importlib.util.find_spec("playwright") is None:
        problem = "playwright is not installed; run: bash env_install.sh --extras quickstart,dev"
    if problem is not None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)
    return path


@pytest.fixture(scope="module")
def browser():
    """A headless Chromium for the tests of one file; it is gone before the tests of other files fork processes."""
    path = chromium_path()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=path, args=["--disable-dev-shm-usage"])
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser):
    """`open_page(path, width, height, dark=False)` opens a file in a window of that many pixels.

    At the end of the test, scripts that failed, dialogs and requests for anything else are failures.
    """
    troubles: list[str] = []
    contexts = []

    def show(path: Path, width: int = 1100, height: int = 800, *, dark: bool = False):
        scheme = "dark" if dark else "light"
        context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        address = path.resolve().as_uri()

        def note_request(request) -> None:
            # Fragments such as #curves are places inside the page.
            if request.url.partition("#")[0] != address and not request.url.startswith(("data:", "blob:")):
                troubles.append(f"{path.name} asked for {request.url[:200]}")

        def dismiss(dialog) -> None:
            troubles.append(f"{path.name} opened a dialog: {dialog.message}")
            dialog.dismiss()

        page.on("request", note_request)
        page.on("dialog", dismiss)
        page.on("pageerror", lambda error: troubles.append(f"{path.name}: {error}"))
        page.goto(address)
        return page

    yield show
    for context in contexts:
        context.close()
    assert not troubles, "\n".join(troubles)
