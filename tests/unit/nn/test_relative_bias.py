"""Buckets against transformers' and against the distances where T5's buckets begin."""

import pytest
import torch
from transformers.models.t5.modeling_t5 import T5Attention

from fivefold.nn.relative_bias import RelativePositionBias, relative_position_bucket


@pytest.mark.parametrize("is_bidirectional", [True, False])
@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (64, 256), (16, 20)])
def test_equal_to_transformers(is_bidirectional, num_buckets, max_distance):
    position = torch.arange(-2048, 2049)
    ours = relative_position_bucket(
        position, num_buckets=num_buckets, max_distance=max_distance, is_bidirectional=is_bidirectional
    )
    theirs = T5Attention._relative_position_bucket(position, is_bidirectional, num_buckets, max_distance)
    assert torch.equal(ours, theirs)


def test_first_distance_of_each_bucket_worked_out_by_hand():
    bucket = relative_position_bucket(-torch.arange(129), is_bidirectional=False)
    first = [int((bucket == b).nonzero()[0]) for b in range(16, 32)]
    assert first == [16, 19, 21, 24, 27, 31, 35, 40, 46, 52, 59, 67, 77, 87, 99, 113]


def test_autocast_does_not_change_a_bucket():
    position = torch.arange(-200, 201)
    plain = relative_position_bucket(position)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(relative_position_bucket(position), plain)


def test_a_later_query_sees_the_same_bias_as_in_the_full_matrix():
    bias = RelativePositionBias(32, 4, 128, is_bidirectional=False)
    full = bias(50, 50)
    torch.testing.assert_close(bias(1, 50, first_query=49), full[:, :, 49:])
    torch.testing.assert_close(bias(3, 50, first_query=20), full[:, :, 20:23])
