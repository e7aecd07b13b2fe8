"""
A page of export.py --to=html as a picture: the page of a GPT continues a text, and one of its tokens is clicked.

    python plot.py screenshot --page=model.html --start="ROMEO:" --click=30
    python plot.py screenshot --page=digits.html --fragment="example=4"      the page of a digit network

Needs an installed Chromium: pip install playwright
"""

import io
import os
from dataclasses import dataclass

from gradus.configurator import check_range
from gradus.errors import UserError
from plots import figures
from plots.browser import browser, wait


@dataclass
class Settings:
    page: str = 'model.html'          # the page
    fragment: str = ''                # what stands after the # in its address
    start: str = ''                   # the text to continue; \n is a newline
    tokens: int = 150                 # how far
    click: int = 30                   # the token to click, counted from 0
    width: int = 800                  # of the window, in pixels
    out: str = 'screenshot.png'       # the picture


def check(cfg):
    """Raise UserError for settings that make no sense."""
    check_range(cfg, tokens=(1, 10000), click=(0, 10000), width=(200, 10000))
    if not os.path.isfile(cfg.page):
        raise UserError(f'page={cfg.page}: not found; python export.py --to=html writes one')
    if not cfg.out.endswith('.png'):
        raise UserError(f'out={cfg.out}: expected a name that ends in .png')
    figures.check_out(cfg.out)


def write_text(tab, cfg):
    """Let a GPT's page write, and show one of its tokens."""
    wait(tab)
    tab.fill('#prompt', cfg.start.replace('\\n', '\n'))
    tab.fill('#max', str(cfg.tokens))
    tab.click('#go')
    wait(tab)
    spans = tab.locator('#text span')
    if cfg.click >= spans.count():
        raise UserError(f'click={cfg.click}: the page has {spans.count()} tokens; expected a smaller number')
    spans.nth(cfg.click).click()
    tab.wait_for_selector('#heads button')
    tab.mouse.move(1, 1)


def main(cfg):
    check(cfg)
    with browser() as chromium:
        tab = chromium.new_page(viewport=dict(width=cfg.width, height=600))
        tab.goto(f'file://{os.path.abspath(cfg.page)}#{cfg.fragment}')
        if tab.locator('#prompt').count():
            write_text(tab, cfg)
        tab.wait_for_timeout(300)                     # until all is drawn
        content = tab.screenshot(full_page=True)
    figures.write(cfg.out, figures.with_palette(io.BytesIO(content)))
