"""
The pieces of an HTML page. Whatever comes from a file is escaped here, so that it cannot be more than text:

    table(['iteration', 'loss'], [[0, '<b>4.2</b>']])      shows <b>4.2</b>, and nothing bold
"""

import html
import os
from string import Template

from gradus.errors import printable, show
from gradus.log import is_number
from plots import figures

TEMPLATE = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'report.html')


class Html(str):
    """Text that is HTML already. The functions below escape all other values."""


def escape(value):
    """Any value as HTML that shows it as text."""
    if isinstance(value, Html):
        return value
    return Html(html.escape(printable(str(value), keep='\n\t')))


def number(value, digits=4):
    """A number in a few digits, with commas; other values as they are, but short."""
    if value is None:
        return ''
    if not is_number(value):
        return value if isinstance(value, str) and len(value) < 100 else show(value)
    if abs(value) >= 1e15:
        return f'{value:.{digits}g}'
    return f'{value:,}' if type(value) is int else f'{value:,.{digits}g}'


def percent(value, digits=4):
    return '' if value is None else f'{number(100 * value, digits)}%'


def duration(seconds):
    """Seconds in words: 1 h 5 min, 3 min 20 s, 8.4 s."""
    if seconds is None or not 0 <= seconds < 1e12:             # what no clock says
        return ''
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f'{hours:,} h {minutes} min' if hours else f'{minutes} min {seconds} s'


def paragraph(text, css='text'):
    return Html(f'<p class="{css}">{escape(text)}</p>\n')


def of_each(runs, texts):
    """A paragraph for each run, which begins with its name if there are two."""
    return [paragraph(text if len(runs) == 1 else f'{run.name}: {text}') for run, text in zip(runs, texts)]


def heading(text):
    return Html(f'<h3>{escape(text)}</h3>\n')


def preformatted(text):
    return Html(f'<pre>{escape(text)}</pre>\n')


def table(header, rows, css='numbers'):
    """A table. css: 'numbers' has them at the right of their columns, 'words' has all at the left."""
    head = ''.join(f'<th>{escape(cell)}</th>' for cell in header)
    body = ''.join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>\n" for row in rows)
    return Html(f'<div class="wide"><table class="{css}">\n<thead><tr>{head}</tr></thead>\n'
                f'<tbody>\n{body}</tbody>\n</table></div>\n')


def bar(fraction):
    """A bar of this length, from 0 to 1."""
    return Html(f'<span class="bar"><span style="width: {100 * fraction:.1f}%"></span></span>')


def figure(drawing, what):
    """A matplotlib Figure as a part of the page; `what` says what it shows, to those who cannot see it."""
    return Html(f'<figure role="img" aria-label="{escape(what)}">\n{figures.svg(drawing)}</figure>\n')


def section(title, advice, *parts):
    """A section: its title, what to look for, and its parts. Without parts there is none."""
    content = ''.join(escape(part) for part in parts)
    if not content:
        return Html('')
    return Html(f'<section>\n<h2>{escape(title)}</h2>\n{paragraph(advice, css="advice")}{content}</section>\n')


def fill(title, sections):
    """The whole page, as text."""
    with open(TEMPLATE, encoding='utf-8') as f:
        return Template(f.read()).substitute(title=escape(title), sections=''.join(sections))
