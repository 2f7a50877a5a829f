"""tests/browser.py: what it tells of a page, and what happens where there is no browser."""

import browser as chromium
import pytest


def test_a_page_is_run_and_measured(open_page, tmp_path):
    """Scripts run, the color scheme is the one asked for, and text is what a reader sees."""
    path = tmp_path / "page.html"
    path.write_text("<p>a</p><script>document.querySelector('p').textContent = innerWidth + ' px'</script>")
    page = open_page(path, 640)
    assert page.inner_text("p") == "640 px"
    assert open_page(path, dark=True).evaluate("matchMedia('(prefers-color-scheme: dark)').matches")


@pytest.mark.parametrize(
    ("content", "trouble"),
    [
        ("<img src=x onerror='document.title=1'>", r"asked for file:.*/x"),
        ("<script>missing()</script>", "missing is not defined"),
        ("<script>alert(7)</script>", "opened a dialog: 7"),
    ],
)
def test_a_page_that_fails_or_asks_for_more_is_told(browser, tmp_path, content, trouble):
    """Each would be the failure of the test that opened the page."""
    path = tmp_path / "page.html"
    path.write_text(content)
    opened = chromium.open_page.__wrapped__(browser)
    next(opened)(path)
    with pytest.raises(AssertionError, match=trouble):
        next(opened)


def test_without_a_browser_a_test_is_skipped_but_fails_in_continuous_integration(monkeypatch):
    """With the same reason."""
    monkeypatch.delenv("CHROMIUM", raising=False)
    monkeypatch.setattr(chromium.shutil, "which", lambda name: None)
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no Chromium found; install it with: apt-get install"):
        chromium.chromium_path()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no Chromium found; install it with: apt-get install"):
        chromium.chromium_path()
