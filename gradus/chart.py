"""A chart of a run's losses in the terminal, in plain ASCII."""

import math

from gradus import log

MARKS = 'o.x+*'                                       # of the first series, the second, ...
CLIPPED = '^'                                         # a value above the chart's top


def show(folder):
    """Print the chart of the run in `folder`, from its log.jsonl, if there is something to draw. Never fails."""
    try:
        records = log.read(folder)
        names = {'val loss': 'val_loss', 'train loss': 'loss'}
        chart = draw({name: log.numbers(records, 'iter', key) for name, key in names.items()})
    except Exception as e:                            # the run is over and saved: whatever this is, it did not fail
        chart = f'no chart of the losses: {type(e).__name__}'
    if chart:
        print(chart)


def draw(series, width=60, height=13):
    """
    series {name: [(iteration, loss), ...]} as width x height characters, with axes around them. A character is the mean
    of the points in its column; where two series meet, the first one is seen. Points that are not finite are left out.
    Returns '' if fewer than three iterations have points.
    """
    series = {name: [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
              for name, points in series.items()}
    all_x = {x for points in series.values() for x, _ in points}
    if len(all_x) < 3:
        return ''

    # From points to columns to rows.
    left, right = min(all_x), max(all_x)
    columns = {name: _columns(points, left, right, width) for name, points in series.items()}
    bottom, top = _range([y for values in columns.values() for y in values.values()])
    rows = [[' '] * width for _ in range(height)]
    for mark, values in reversed(list(zip(MARKS, columns.values()))):
        for column, y in values.items():
            row = round((top - min(y, top)) / (top - bottom) * (height - 1))
            rows[row][column] = mark if y <= top else CLIPPED

    # Axes: a value at every fourth row, the first and the last x below.
    lines = []
    for n, row in enumerate(rows):
        value = f'{top - (top - bottom) * n / (height - 1):.4g}' if n % 4 == 0 else ''
        lines.append(f'{value:>9} |{"".join(row)}'.rstrip())
    ends = f'{left:,.10g}', f'{right:,.10g}'
    lines.append(f'{"+":>11}' + ('-' * (width // 4 - 1) + '+') * 4)
    lines.append(' ' * 11 + ends[0] + f'{"iterations":^{width - len("".join(ends))}}' + ends[1])

    legend = [f'{mark} {name}' for mark, (name, points) in zip(MARKS, series.items()) if points]
    if any(CLIPPED in row for row in rows):
        legend.append(f'{CLIPPED} higher')
    return '\n'.join([' ' * 11 + '   '.join(legend), *lines])


def _columns(points, left, right, width):
    """{column: mean y} of the columns that have points."""
    found = {}
    for x, y in points:
        found.setdefault(round((x - left) / (right - left) * (width - 1)), []).append(y)
    return {column: sum(y / len(values) for y in values) for column, values in found.items()}


def _range(values):
    """
    The lowest and the highest value to show. A loss falls steeply at first, which would squash the rest: show nine
    tenths of the values, and all that is not far above the median.
    """
    values = sorted(values)
    low, middle = values[0], values[len(values) // 2]
    limit = max(values[9 * (len(values) - 1) // 10], middle + 3 * (middle - low))
    high = max(value for value in values if value <= limit)
    return low, high if low < high else low + (abs(low) or 1)
