"""The joined calls of the fused kernel against torch's attention with the mask written out."""

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.functional import scaled_dot_product_attention

from fivefold.branches.attention import branch_attention
from fivefold.branches.plan import BranchPlan, columnar_mask

ROWS = {
    "equal": [(4, (3, 3))],
    "ragged": [(4, (2, 5, 1))],
    "two_rows": [(4, (3, 3)), (6, (2, 1))],
    "no_main": [(0, (3, 4))],
    "no_branch": [(5, ()), (2, (1,))],
}


def make_plan(rows, **changes):
    """Rows of (length of main, lengths of branches), padded."""
    width = 1 + max(main + sum(lengths) for main, lengths in rows)
    branches = torch.full((len(rows), width), -1)
    times = torch.zeros(len(rows), width, dtype=torch.long)
    for row, (main, lengths) in enumerate(rows):
        owners = [0] * main + [number for number, length in enumerate(lengths, 1) for _ in range(length)]
        moments = [*range(main), *(main + place for length in lengths for place in range(length))]
        branches[row, : len(owners)], times[row, : len(owners)] = torch.tensor(owners), torch.tensor(moments)
    return BranchPlan(branches, times, **changes)


def visible_by_hand(plan, window=None):
    """Pair by pair."""
    rows, width = plan.branches.shape
    mask = torch.zeros(rows, 1, width, width, dtype=torch.bool)
    for row in range(rows):
        owner, time = plan.branches[row].tolist(), plan.times[row].tolist()
        for q in range(width):
            for k in range(width):
                if owner[q] < 0 or owner[k] < 0:
                    mask[row, 0, q, k] = q == k
                    continue
                if plan.visibility == "columnar":
                    sees = q == k or time[k] < time[q]
                else:
                    sees = owner[k] in (0, owner[q]) and k <= q
                mask[row, 0, q, k] = sees and (window is None or time[q] - time[k] < window)
    return mask


def call(plan, heads, window=None):
    """Ours and torch's, with gradients, in float64."""
    torch.manual_seed(0)
    width = plan.branches.shape[1]
    q, k, v = (torch.randn(len(plan.rows), count, width, 8, dtype=torch.float64, requires_grad=True) for count in heads)
    module = torch.nn.Module()
    module.num_key_value_groups = heads[0] // heads[1]
    ours = branch_attention(module, q, k, v, None, scaling=0.3, branches=plan, sliding_window=window)[0]
    mask = visible_by_hand(plan, window)
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.3, enable_gqa=True).transpose(1, 2)
    is_real = (plan.branches >= 0)[:, :, None, None]
    upstream = torch.randn_like(ours) * is_real
    gradients = (torch.autograd.grad(out, (q, k, v), upstream) for out in (ours, theirs))
    return (ours * is_real, theirs * is_real), *zip(*gradients, strict=True)


@pytest.mark.parametrize("heads", [(4, 4, 4), (4, 2, 2), (3, 1, 1)])
@pytest.mark.parametrize("rows", ROWS)
def test_values_and_gradients(rows, heads):
    for ours, theirs in call(make_plan(ROWS[rows]), heads):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("visibility", "window"), [("columnar", None), ("isolated", 3), ("columnar", 3), ("isolated", 99)]
)
def test_other_rules_take_a_mask(visibility, window):
    for ours, theirs in call(make_plan(ROWS["two_rows"], visibility=visibility), (4, 2, 2), window):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("visibility", ["isolated", "columnar"])
@pytest.mark.parametrize("window", [None, 3])
def test_blocks_for_gpus_say_the_same(rows, visibility, window):
    plan = make_plan(ROWS[rows], visibility=visibility)
    q, k, v = (torch.randn(len(plan.rows), heads, plan.branches.shape[1], 16) for heads in (4, 2, 2))
    ours = flex_attention(q, k, v, block_mask=plan.blocks(window), enable_gqa=True)
    theirs = scaled_dot_product_attention(q, k, v, attn_mask=visible_by_hand(plan, window), enable_gqa=True)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_columns_of_the_document():
    """Its own example: main of 4, two branches of 4, each token sees itself and all earlier columns."""
    times = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]])
    sees = columnar_mask(times)[0]
    assert sees[5].nonzero().flatten().tolist() == [0, 1, 2, 3, 4, 5, 8]
    assert sees[8].nonzero().flatten().tolist() == [0, 1, 2, 3, 8]


def test_half_precision_stays_near():
    torch.manual_seed(0)
    plan = make_plan(ROWS["ragged"])
    q, k, v = (torch.randn(1, heads, plan.branches.shape[1], 16) for heads in (4, 2, 2))
    exact = branch_attention(torch.nn.Module(), q, k, v, None, branches=plan)[0]
    half = branch_attention(torch.nn.Module(), q.bfloat16(), k.bfloat16(), v.bfloat16(), None, branches=plan)[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), exact, rtol=0.05, atol=0.05)
