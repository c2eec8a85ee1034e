"""The terms of the loss by family."""

import pytest

from fivefold.errors import ConfigError
from fivefold.objectives.settings import LossSettings


def test_each_family_has_its_customary_z_loss():
    assert LossSettings().for_family("t5") == LossSettings(1e-4)
    assert LossSettings().for_family("llama") == LossSettings(0.0)
    for family in ("t5", "llama"):
        assert LossSettings(0.5, 0.1).for_family(family) == LossSettings(0.5, 0.1)
        assert LossSettings(0.0).for_family(family) == LossSettings(0.0)
    with pytest.raises(ConfigError, match="z_loss is -1"):
        LossSettings(-1)
