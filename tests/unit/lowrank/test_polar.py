"""Newton-Schulz against the singular values themselves."""

import pytest
import torch
from dense_formulas import CLOSE_AFTER_QUINTIC, normal, quintic_polar

from fivefold.lowrank.polar import polar


@pytest.mark.parametrize(("m", "n"), [(9, 7), (7, 9), (8, 8), (1, 5), (40, 12)])
def test_polar_is_the_quintic_on_the_singular_values(m, n):
    for num_rounds in (1, 5, 6):
        matrix = normal(m, m, n)
        torch.testing.assert_close(polar(matrix, num_rounds), quintic_polar(matrix, num_rounds), **CLOSE_AFTER_QUINTIC)
    values = torch.linalg.svdvals(polar(matrix, 6))
    assert 0.6 < values.min() <= values.max() < 1.3
    assert not polar(torch.zeros(m, n)).any()
