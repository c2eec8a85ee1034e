"""The kernels of `triton_attention`: exact attention with a bias by distance, tile by tile, and its gradients.

Shapes: a program's tile is M queries by N keys; D is head_dim, W the power of two that it is padded to. Tensors are
[B, length, heads, D], without gaps.
"""

# pyright: reportGeneralTypeIssues=false, reportCallIssue=false
# (for it the functions of Triton's language are Python's, which they are not)

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)  # exponentials are powers of two on a GPU
PRECISION = tl.constexpr("tf32x3")  # three products of a tensor core for one of float32; half types take one
LOWEST = tl.constexpr(-3.4e38)  # not -inf: a query that has seen no key yet must not compute -inf - -inf


@triton.jit
def _place(length, heads, SIZE: tl.constexpr):
    """The block of rows, the batch row and the head that this program works on."""
    num_blocks = tl.cdiv(length, SIZE)
    program = tl.program_id(0)
    return program % num_blocks * SIZE, program // num_blocks // heads, program // num_blocks % heads


@triton.jit
def _at(batch, length, head, heads, rows, D: tl.constexpr, W: tl.constexpr):
    """Where one head's rows of a [B, length, heads, D] tensor are, and which of them exist: [rows, W] each."""
    columns = tl.arange(0, W)
    start = (batch.to(tl.int64) * length * heads + head) * D
    exists = rows[:, None] < length
    if W != D:
        exists = exists & (columns[None, :] < D)
    return start + rows[:, None] * (heads * D) + columns[None, :], exists


@triton.jit
def _load(ptr, batch, length, head, heads, rows, D: tl.constexpr, W: tl.constexpr):
    at, exists = _at(batch, length, head, heads, rows, D, W)
    return tl.load(ptr + at, mask=exists, other=0.0)


@triton.jit
def _store(ptr, values, batch, length, head, heads, rows, D: tl.constexpr, W: tl.constexpr):
    at, exists = _at(batch, length, head, heads, rows, D, W)
    tl.store(ptr + at, values.to(ptr.dtype.element_ty), mask=exists)


@triton.jit
def _segments(ptr, batch, length, rows):
    """The example that each row belongs to; 0 for all where rows are not packed."""
    return tl.zeros_like(rows) if ptr is None else tl.load(ptr + batch * length + rows, mask=rows < length, other=0)


@triton.jit
def _exist(mask_ptr, batch, length, keys):
    """Which keys exist and are no padding."""
    exist = keys < length
    if mask_ptr is not None:
        exist = exist & (tl.load(mask_ptr + batch * length + keys, mask=exist, other=0) != 0)
    return exist


@triton.jit
def _scores(products, distance, visible, weight_ptr, reach, scale, IS_CAUSAL: tl.constexpr, SIDE: tl.constexpr):
    """Scores of a tile in powers of two, -inf where a query does not see a key.

    distance is key minus query. SIDE says where the tile lies: 0 with all keys at least `reach` before the queries, 2
    with all of them at least `reach` after, 1 between.
    """
    if SIDE == 1:
        bias = tl.load(weight_ptr + tl.minimum(tl.maximum(distance, -reach), reach) + reach)
    else:
        bias = tl.load(weight_ptr + SIDE * reach)
    if IS_CAUSAL and SIDE != 0:
        visible = visible & (distance <= 0)
    return tl.where(visible, (products * scale + bias.to(tl.float32)) * LOG2E, float("-inf"))


@triton.jit
def _key_bounds(query, key_len, reach, IS_CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """Where the keys of a block of queries begin, come within reach, leave it, and end: bounds of sides 0, 1 and 2."""
    end = key_len
    if IS_CAUSAL:
        end = tl.minimum(key_len, query + M)
    within = tl.minimum(tl.maximum(query - reach + 1, 0) // N * N, end)
    beyond = tl.minimum(tl.cdiv(query + M - 1 + reach, N) * N, end)
    return 0, within, beyond, end


@triton.jit
def _query_bounds(key, query_len, reach, IS_CAUSAL: tl.constexpr, M: tl.constexpr, N: tl.constexpr):
    """The same for the queries of a block of keys, whose first stands `key` behind the first query: sides 2, 1, 0."""
    start = 0
    if IS_CAUSAL:
        start = tl.minimum(tl.maximum(key, 0) // M * M, query_len)
    within = tl.minimum(tl.maximum(tl.maximum(key - reach + 1, 0) // M * M, start), query_len)
    beyond = tl.minimum(tl.maximum(tl.cdiv(tl.maximum(key + N - 1 + reach, 0), M) * M, within), query_len)
    return start, within, beyond, query_len


@triton.jit
def forward(
    q_ptr,
    k_ptr,
    v_ptr,
    weight_ptr,
    mask_ptr,
    query_segment_ptr,
    key_segment_ptr,
    heads,
    key_heads,
    query_len,
    key_len,
    first_query,
    reach,
    scale,
    out_ptr,
    log_sum_ptr,
    IS_CAUSAL: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """One head's block of queries against all keys."""
    m0, batch, head = _place(query_len, heads, M)
    key_head = head // (heads // key_heads)
    rows = m0 + tl.arange(0, M)
    q = _load(q_ptr, batch, query_len, head, heads, rows, D, W)
    query_segment = _segments(query_segment_ptr, batch, query_len, rows)
    weight_ptr += head * (2 * reach + 1)
    top = tl.full([M], LOWEST, tl.float32)
    total = tl.zeros([M], tl.float32)
    weighted = tl.zeros([M, W], tl.float32)
    bounds = _key_bounds(m0 + first_query, key_len, reach, IS_CAUSAL, M, N)
    for side in tl.static_range(3):
        for n0 in tl.range(bounds[side], bounds[side + 1], N):
            keys = n0 + tl.arange(0, N)
            k = _load(k_ptr, batch, key_len, key_head, key_heads, keys, D, W)
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            key_segment = _segments(key_segment_ptr, batch, key_len, keys)
            visible = _exist(mask_ptr, batch, key_len, keys)[None, :] & (query_segment[:, None] == key_segment[None, :])
            distance = keys[None, :] - (rows[:, None] + first_query)
            scores = _scores(products, distance, visible, weight_ptr, reach, scale, IS_CAUSAL, side)
            old_top = top
            top = tl.maximum(top, tl.max(scores, 1))
            # What was added up as 2^(score - old_top) becomes 2^(score - top).
            shrink = tl.exp2(old_top - top)
            weights = tl.exp2(scores - top[:, None])
            total = total * shrink + tl.sum(weights, 1)
            v = _load(v_ptr, batch, key_len, key_head, key_heads, keys, D, W)
            weighted = tl.dot(weights.to(v.dtype), v, weighted * shrink[:, None], input_precision=PRECISION)
    sees_some = total > 0
    total = tl.where(sees_some, total, 1.0)
    # inf for a query that sees no key: the backward pass then gives its keys weights of 2^-inf.
    log_sum = tl.where(sees_some, top + tl.log2(total), float("inf"))
    _store(out_ptr, weighted / total[:, None], batch, query_len, head, heads, rows, D, W)
    tl.store(log_sum_ptr + (batch * heads + head) * query_len + rows, log_sum, mask=rows < query_len)


@triton.jit
def grad_queries(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    grad_ptr,
    weight_ptr,
    mask_ptr,
    query_segment_ptr,
    key_segment_ptr,
    heads,
    key_heads,
    query_len,
    key_len,
    first_query,
    reach,
    scale,
    log_sum_ptr,
    dot_ptr,
    grad_q_ptr,
    sums_ptr,
    IS_CAUSAL: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """The gradient of one head's block of queries, and what it gives each distance's bias.

    Sums by distance, [2 * reach + 4N] a program, begin at -reach - 2N; the first and the last take all beyond reach.
    """
    m0, batch, head = _place(query_len, heads, M)
    key_head = head // (heads // key_heads)
    rows = m0 + tl.arange(0, M)
    q = _load(q_ptr, batch, query_len, head, heads, rows, D, W)
    grad = _load(grad_ptr, batch, query_len, head, heads, rows, D, W)
    out = _load(out_ptr, batch, query_len, head, heads, rows, D, W)
    dot = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    at = (batch * heads + head) * query_len + rows
    tl.store(dot_ptr + at, dot, mask=rows < query_len)
    log_sum = tl.load(log_sum_ptr + at, mask=rows < query_len, other=float("inf"))
    query_segment = _segments(query_segment_ptr, batch, query_len, rows)
    weight_ptr += head * (2 * reach + 1)
    grad_q = tl.zeros([M, W], tl.float32)
    columns = tl.arange(0, N)
    if sums_ptr is not None:
        sums_ptr += tl.program_id(0).to(tl.int64) * (2 * reach + 4 * N)
        diagonals = tl.arange(0, M)[:, None] + columns[None, :]
        passed = tl.zeros([N], tl.float32)
    bounds = _key_bounds(m0 + first_query, key_len, reach, IS_CAUSAL, M, N)
    for side in tl.static_range(3):
        all_far = tl.zeros([M], tl.float32)
        for n0 in tl.range(bounds[side], bounds[side + 1], N):
            keys = n0 + columns
            k = _load(k_ptr, batch, key_len, key_head, key_heads, keys, D, W)
            v = _load(v_ptr, batch, key_len, key_head, key_heads, keys, D, W)
            products = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            key_segment = _segments(key_segment_ptr, batch, key_len, keys)
            visible = _exist(mask_ptr, batch, key_len, keys)[None, :] & (query_segment[:, None] == key_segment[None, :])
            distance = keys[None, :] - (rows[:, None] + first_query)
            scores = _scores(products, distance, visible, weight_ptr, reach, scale, IS_CAUSAL, side)
            weights = tl.exp2(scores - log_sum[:, None])
            grad_scores = weights * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - dot[:, None])
            grad_q = tl.dot(grad_scores.to(k.dtype), k, grad_q, input_precision=PRECISION)
            if sums_ptr is not None:
                if side == 1:
                    # Row m turned left by m places: column c holds distance c, and c - N where it came in again.
                    turned = tl.gather(grad_scores, diagonals % N, 1)
                    passed += tl.sum(tl.where(diagonals < N, 0.0, turned), 0)
                    start = n0 - m0 - first_query + reach + N
                    tl.store(sums_ptr + start + columns, passed)
                    passed = tl.sum(tl.where(diagonals < N, turned, 0.0), 0)
                else:
                    all_far += tl.sum(grad_scores, 1)
        if sums_ptr is not None:
            if side == 1:
                last = tl.cdiv(bounds[2] - bounds[1], N) * N + bounds[1]
                start = last - m0 - first_query + reach + N
                tl.store(sums_ptr + start + columns, passed, mask=(columns >= 0) & (bounds[1] < bounds[2]))
            else:
                tl.store(sums_ptr + side * (reach + 2 * N) - side // 2, tl.sum(all_far, 0))
    _store(grad_q_ptr, grad_q * scale, batch, query_len, head, heads, rows, D, W)


@triton.jit
def grad_keys(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    weight_ptr,
    mask_ptr,
    query_segment_ptr,
    key_segment_ptr,
    heads,
    key_heads,
    query_len,
    key_len,
    first_query,
    reach,
    scale,
    log_sum_ptr,
    dot_ptr,
    grad_k_ptr,
    grad_v_ptr,
    IS_CAUSAL: tl.constexpr,
    D: tl.constexpr,
    W: tl.constexpr,
    M: tl.constexpr,
    N: tl.constexpr,
):
    """The gradients of one key head's block of keys and values, from all heads that share it."""
    n0, batch, key_head = _place(key_len, key_heads, N)
    keys = n0 + tl.arange(0, N)
    k = _load(k_ptr, batch, key_len, key_head, key_heads, keys, D, W)
    v = _load(v_ptr, batch, key_len, key_head, key_heads, keys, D, W)
    key_segment = _segments(key_segment_ptr, batch, key_len, keys)
    exist = _exist(mask_ptr, batch, key_len, keys)
    grad_k = tl.zeros([N, W], tl.float32)
    grad_v = tl.zeros([N, W], tl.float32)
    bounds = _query_bounds(n0 - first_query, query_len, reach, IS_CAUSAL, M, N)
    shared = heads // key_heads
    for head in tl.range(key_head * shared, key_head * shared + shared):
        for part in tl.static_range(3):
            for m0 in tl.range(bounds[part], bounds[part + 1], M):
                rows = m0 + tl.arange(0, M)
                q = _load(q_ptr, batch, query_len, head, heads, rows, D, W)
                grad = _load(grad_ptr, batch, query_len, head, heads, rows, D, W)
                at = (batch * heads + head) * query_len + rows
                log_sum = tl.load(log_sum_ptr + at, mask=rows < query_len, other=float("inf"))
                dot = tl.load(dot_ptr + at, mask=rows < query_len, other=0.0)
                products = tl.dot(k, tl.trans(q), input_precision=PRECISION)
                query_segment = _segments(query_segment_ptr, batch, query_len, rows)
                visible = exist[:, None] & (key_segment[:, None] == query_segment[None, :])
                distance = keys[:, None] - (rows[None, :] + first_query)
                weight = weight_ptr + head * (2 * reach + 1)
                scores = _scores(products, distance, visible, weight, reach, scale, IS_CAUSAL, 2 - part)
                weights = tl.exp2(scores - log_sum[None, :])
                grad_v = tl.dot(weights.to(grad.dtype), grad, grad_v, input_precision=PRECISION)
                grad_weights = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
                grad_scores = weights * (grad_weights - dot[None, :])
                grad_k = tl.dot(grad_scores.to(q.dtype), q, grad_k, input_precision=PRECISION)
    _store(grad_k_ptr, grad_k * scale, batch, key_len, key_head, key_heads, keys, D, W)
    _store(grad_v_ptr, grad_v, batch, key_len, key_head, key_heads, keys, D, W)
