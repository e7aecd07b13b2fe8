"""What needs a browser: Chromium without a window, driven by playwright."""

import shutil
from contextlib import contextmanager

from gradus.errors import UserError


def chromium_path():
    """Where Chromium is. Raises UserError if it is not installed."""
    for name in ('chromium', 'chromium-browser', 'google-chrome'):
        if path := shutil.which(name):
            return path
    raise UserError('chromium: not found; expected an installed Chromium or Google Chrome')


@contextmanager
def browser():
    """A headless Chromium. Raises UserError if something is missing."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError as e:
        raise UserError('opening a page needs playwright; pip install playwright') from e
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=chromium_path(), args=['--no-sandbox', '--disable-gpu'])
        yield chromium
        chromium.close()


def wait(tab):
    """Until the page of a GPT is ready, or has done what it was told."""
    tab.wait_for_selector('#go:not([disabled])')
