"""A line at the end of python -m pytest exercises: how many are solved, and which is next."""

import torch

torch.set_num_threads(1)                              # these networks are tiny


def pytest_terminal_summary(terminalreporter):
    """Print for example: 4 of 12 solved; next: exercises/ex05_softmax.py"""
    solved, others = [], []
    for outcome in ('passed', 'skipped', 'failed'):
        for report in terminalreporter.stats.get(outcome, []):
            if report.nodeid.startswith('exercises/test_exercises.py'):
                name = report.nodeid.split('[')[-1].rstrip(']')
                (solved if outcome == 'passed' else others).append(name)
    if solved or others:
        line = f'{len(solved)} of {len(solved) + len(others)} solved'
        if others:
            line += f'; next: exercises/{min(others)}.py'
        terminalreporter.write_line(line)
