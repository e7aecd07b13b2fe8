"""The last line of `python -m pytest exercises`: how many are solved, and which is next."""

from exercises.checks import EXERCISES


def pytest_terminal_summary(terminalreporter):
    solved = {name_of(report) for report in terminalreporter.stats.get('passed', []) if name_of(report)}
    seen = [name_of(report) for reports in terminalreporter.stats.values() for report in reports]
    if not any(seen):
        return
    to_go = [name for name in EXERCISES if name in seen and name not in solved]
    following = f'next: exercises/{to_go[0]}.py' if to_go else 'well done'
    terminalreporter.write_line(f'{len(solved)} of {len({*seen} - {None})} solved; {following}')


def name_of(report):
    """'ex01_neuron' of the report of its test, None of anything else."""
    node = getattr(report, 'nodeid', '')
    name = node.partition('::test_exercise[')[2].rstrip(']')
    return name if name in EXERCISES else None
