"""
What all pictures share: a figure that needs no screen, one style, legible in black and white, and how it is saved.

    figure = new_figure(7, 3)                 inches, at 100 dots each
    axes = figure.subplots()
    axes.plot(...)
    save(figure, 'picture.png')               or .svg, .pdf
"""

import io
import os

from gradus.errors import UserError
from gradus.files import atomic_write

STYLE = {
    'font.size': 9,
    'axes.grid': True,
    'grid.alpha': 0.3,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'image.interpolation': 'nearest',
    'svg.fonttype': 'none',           # text stays text
    'svg.hashsalt': 'gradus',         # the same picture is the same file
}
# Lines differ in color, lightness and dashes, so that they differ in black and white too.
COLORS = ['#1b6ca8', '#d95f02', '#2a2a2a', '#4daf9a', '#9467bd', '#b8860b']
DASHES = ['-', '--', ':', '-.', (0, (5, 1)), (0, (1, 1))]
ENDINGS = ('.png', '.svg', '.pdf')


def require_matplotlib():
    """Raise UserError if matplotlib is missing: before anything is loaded or computed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as e:
        raise UserError('plot.py needs matplotlib; pip install matplotlib') from e


def check_out(path):
    """Raise UserError unless `path` can be the file of a picture, and matplotlib is there."""
    require_matplotlib()
    if not path.lower().endswith(ENDINGS):
        raise UserError(f"out={path}: expected a file ending with {', '.join(ENDINGS)}")
    if os.path.isdir(path):
        raise UserError(f'out={path}: this is a folder; expected a file to write')


def new_figure(width, height):
    """An empty matplotlib Figure of this size in inches, in our style. It needs no screen and no pyplot."""
    require_matplotlib()
    import matplotlib
    from cycler import cycler
    from matplotlib.figure import Figure
    matplotlib.rcParams.update({**STYLE, 'axes.prop_cycle': cycler(color=COLORS, linestyle=DASHES)})
    return Figure(figsize=(width, height), dpi=100, layout='constrained', facecolor='white')


def save(figure, path):
    """Write the picture, in the format that its name ends with, and say so. Raises UserError."""
    content = io.BytesIO()
    ending = path.rsplit('.', 1)[1].lower()
    figure.savefig(content, format=ending, metadata=_without_date(path))
    write(path, with_palette(content) if ending == 'png' else content)


def with_palette(content):
    """A PNG with 256 colors, which are enough for us: a third of the bytes. Pillow comes with matplotlib."""
    from PIL import Image
    small = io.BytesIO()
    Image.open(content).convert('RGB').quantize(256).save(small, 'PNG', optimize=True)
    return small


def write(path, content):
    """Write a picture that is in memory."""
    with atomic_write(path) as f:
        f.write(content.getvalue())
    print(f'{path}: drawn')


def _without_date(path):
    """The same picture is the same file, whenever it is drawn."""
    return {'.svg': {'Date': None}, '.pdf': {'CreationDate': None}}.get(os.path.splitext(path)[1].lower())


def svg(figure):
    """The picture as the text of an <svg> element, to put into a page."""
    content = io.BytesIO()
    figure.savefig(content, format='svg', metadata={'Date': None})
    text = content.getvalue().decode('utf-8')
    return text[text.index('<svg'):]


# ---------------------------------------------------------------------------- text of tokens

VISIBLE = {' ': '␣', '\n': '↵', '\t': '⇥'}


def token_label(data, limit=16):
    """
    The bytes of a token as printable text: a space is ␣, a newline ↵, a tab ⇥; what is no character is an escape such
    as \\xe2. Longer ones are cut.
    """
    text = data.decode('utf-8', errors='backslashreplace')
    text = ''.join(VISIBLE.get(c) or (c if c.isprintable() else ascii(c)[1:-1]) for c in text)
    return text if len(text) <= limit else text[:limit - 1] + '…'


def drawable(text):
    """The text as matplotlib can draw it: an escape for a letter that its font lacks, and no $ starts a formula."""
    from matplotlib import font_manager, ft2font
    font = ft2font.FT2Font(font_manager.findfont('DejaVu Sans'))
    text = ''.join(c if font.get_char_index(ord(c)) else ascii(c)[1:-1] for c in text)
    return text.replace('$', '\\$')
