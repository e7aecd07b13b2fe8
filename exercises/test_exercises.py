"""Which exercises are solved, and what is wrong with the others: python -m pytest exercises"""

import pytest

from exercises import checks


@pytest.mark.parametrize('name', checks.EXERCISES)
def test_exercise(name):
    try:
        checks.run(name)
    except checks.Unsolved:
        pytest.skip('not solved yet')
    except checks.Wrong as e:
        pytest.fail(f'exercises/{name}.py: {e}', pytrace=False)
