"""Which exercises are solved, and what is wrong with the others: python -m pytest exercises"""

import importlib

import pytest

from exercises.checks import EXERCISES, Wrong


@pytest.mark.parametrize('name', EXERCISES)
def test_exercise(name):
    function, check = EXERCISES[name]
    problem = ''
    try:
        check(getattr(importlib.import_module(f'exercises.{name}'), function))
    except NotImplementedError:
        pytest.skip('not solved yet')
    except Wrong as e:
        problem = str(e)
    except (SyntaxError, ImportError, NameError, AttributeError) as e:
        problem = f'{type(e).__name__}: {e}'
    if problem:                                       # here, not above: pytest would show the first error too
        pytest.fail(f'exercises/{name}.py: {problem}', pytrace=False)
