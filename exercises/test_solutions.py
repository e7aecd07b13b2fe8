"""Which exercises are solved? `python -m pytest exercises` from the folder above."""

import importlib

import pytest

from exercises import checks


@pytest.mark.parametrize('name', checks.EXERCISES)
def test_exercise(name):
    function, check = checks.EXERCISES[name]
    solution = getattr(importlib.import_module(f'exercises.{name}'), function)
    try:
        check(solution)
    except NotImplementedError:
        pytest.skip('not solved yet')
    except checks.Wrong as wrong:
        pytest.fail(f'{name}: {wrong}', pytrace=False)
