"""What the settings of low rank refuse, and what they only say."""

import logging

import pytest

from fivefold.errors import ConfigError
from fivefold.lowrank.settings import LoroSettings, LowRankSettings


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LowRankSettings(loro_attn_rank=0), "loro_attn_rank is 0, but a rank must be 1 or above"),
        (lambda: LowRankSettings(loro_init="const_0"), "loro_init is 'const_0', which makes both factors zero"),
        (lambda: LowRankSettings(loro_init="randn_0.0e5"), "which makes both factors zero"),
        (lambda: LoroSettings("eucl", loro_scale_exact=True), "--loro_type eucl has no loro_scale_exact"),
        (lambda: LoroSettings("rebalance", loro_scale_exact=True), "--loro_type rebalance has no loro_scale_exact"),
    ],
)
def test_settings_that_cannot_work_are_refused_in_one_sentence(build, message):
    with pytest.raises(ConfigError, match=message):
        build()


def test_a_start_from_nothing_but_one_factor_is_a_start():
    assert LowRankSettings(loro_init="spectral_0").loro_init == "spectral_0"


@pytest.mark.parametrize(("loro_type", "is_said"), [("loro", False), ("rebalance", False), ("eucl", True)])
def test_a_frequency_of_steps_that_there_are_not_is_said_to_change_nothing(loro_type, is_said, caplog):
    with caplog.at_level(logging.INFO, "fivefold"):
        LoroSettings(loro_type, loro_freq=500)
    assert ("--loro_freq changes nothing" in caplog.text) == is_said


def test_the_references_flags_bring_its_momentum():
    assert LoroSettings(loro_freq=500).momentum == "tangent"
    for theirs in ({"loro_refresh": "all", "loro_refresh_freq": 500}, {"loro_lr_scaler": "-1"}, {"loro_type": "eucl"}):
        assert LoroSettings(**theirs).momentum == "factor"
    assert LoroSettings(loro_lr_scaler="-1", loro_momentum="tangent").momentum == "tangent"
