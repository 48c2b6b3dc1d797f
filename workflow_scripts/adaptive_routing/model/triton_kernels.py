"""Kernels in Triton for what a pass does between its matrix products, each in one reading of its inputs.

Intermediate results are rounded to the tensors' dtype where torch's own operations round them; what is
between is float32. Sums are taken in another order than torch's. Nothing is atomic, so that results are the
same to the bit each time.

The module cannot be imported where Triton is not installed: `fused` asks for it.
"""

from __future__ import annotations

import functools

import torch
import triton  # ty: ignore[import-not-found]
import triton.language as tl  # ty: ignore[import-not-found]

_LOWEST = tl.constexpr(-3.4e38)  # finite, so that differences of it are no NaN
_VOCABULARY_BLOCK = 1024
# Without it a product and a sum become one operation, which leaves out the rounding between them.
_ROUNDED = {"enable_fp_fusion": False}


def _launch(kernel, programs, *arguments, **options):
    """Run so many programs of a kernel on the device of its first argument."""
    if programs:
        with torch.cuda.device_of(arguments[0]):
            kernel[(programs,)](*arguments, **options)


@functools.cache
def _row_shape(width):
    """The block that holds a row of so many numbers, and how many warps compute it."""
    block = triton.next_power_of_2(width)
    return {"WIDTH": width, "BLOCK": block, "num_warps": min(8, max(1, block // 512))}


@triton.jit
def _rms_norm(values, weight, output, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    dtype = output.dtype.element_ty
    value = tl.load(values + row + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.rsqrt(tl.sum(value * value, 0) / WIDTH + eps)
    normed = (value * scale).to(dtype).to(tl.float32)
    weighted = normed * tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + row + column, weighted.to(dtype), mask=inside)


def rms_norm(values: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """weight · round(values / √(mean(values²) + eps)) of rows (..., H), with weights (H,) of their dtype."""
    values = values.contiguous()
    output, width = torch.empty_like(values), values.shape[-1]
    rows = values.numel() // width
    _launch(_rms_norm, rows, values, weight, output, eps, **_row_shape(width), **_ROUNDED)
    return output


@triton.jit
def _rotate(
    values, cosine, sine, output, heads, head_stride, token_stride,
    HALF: tl.constexpr, HEADS_BLOCK: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, column = tl.arange(0, HEADS_BLOCK)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    inside, in_row = (head < heads) & (column < HALF), column < HALF
    dtype = output.dtype.element_ty
    first = token * token_stride + head * head_stride + column
    left = tl.load(values + first, mask=inside, other=0.0).to(tl.float32)
    right = tl.load(values + first + HALF, mask=inside, other=0.0).to(tl.float32)
    angle = token * 2 * HALF + column
    left_cosine = tl.load(cosine + angle, mask=in_row, other=0.0).to(tl.float32)
    left_sine = tl.load(sine + angle, mask=in_row, other=0.0).to(tl.float32)
    right_cosine = tl.load(cosine + angle + HALF, mask=in_row, other=0.0).to(tl.float32)
    right_sine = tl.load(sine + angle + HALF, mask=in_row, other=0.0).to(tl.float32)
    kept, turned = (left * left_cosine).to(dtype), (right * left_sine).to(dtype)
    tl.store(output + first, (kept.to(tl.float32) - turned.to(tl.float32)).to(dtype), mask=inside)
    kept, turned = (right * right_cosine).to(dtype), (left * right_sine).to(dtype)
    tl.store(output + first + HALF, (kept.to(tl.float32) + turned.to(tl.float32)).to(dtype), mask=inside)


def rotate(values: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """Rotary embedding, by halves, of values (1, heads, N, D) with a last stride of 1.

    cosine and sine: (1, N, D) of the same dtype.
    """
    _, heads, tokens, size = values.shape
    output = torch.empty_like(values)
    if output.stride() != values.stride():
        values = values.contiguous()
        output = torch.empty_like(values)
    _, head_stride, token_stride, _ = values.stride()
    _launch(
        _rotate, tokens, values, cosine.contiguous(), sine.contiguous(), output, heads, head_stride,
        token_stride, HALF=size // 2, HEADS_BLOCK=triton.next_power_of_2(heads),
        HALF_BLOCK=triton.next_power_of_2(size // 2), **_ROUNDED,
    )  # fmt: skip
    return output


@triton.jit
def _silu_gate(gate_up, scale, output, SCALED: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    dtype = output.dtype.element_ty
    gate = tl.load(gate_up + row * 2 * WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * WIDTH + WIDTH + column, mask=inside, other=0.0).to(tl.float32)
    gated = (gate / (1.0 + tl.exp(-gate))).to(dtype).to(tl.float32) * up
    if SCALED:
        gated = gated.to(dtype).to(tl.float32) * tl.load(scale + row).to(tl.float32)
    tl.store(output + row * WIDTH + column, gated.to(dtype), mask=inside)


def silu_gate(gate_up: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
    """silu(gate) · up of rows (P, 2F), gate first, times a number (P,) for each row: (P, F)."""
    rows, width = gate_up.shape[0], gate_up.shape[1] // 2
    output = gate_up.new_empty(rows, width)
    is_scaled = scale is not None
    _launch(_silu_gate, rows, gate_up, scale, output, SCALED=is_scaled, **_row_shape(width), **_ROUNDED)
    return output


@triton.jit(do_not_specialize=["slots"])
def _gather_pairs(states, by_expert, inputs, position, slots, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    pair = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    slot = tl.load(by_expert + pair)
    state = tl.load(states + slot // slots * WIDTH + column, mask=inside)
    tl.store(inputs + pair * WIDTH + column, state, mask=inside)
    tl.store(position + slot, pair.to(tl.int32))


def gather_pairs(
    states: torch.Tensor, by_expert: torch.Tensor, slots: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The states (P, H) that pairs of token and expert read, and where each slot's stands: (T · K,) int32.

    Args:
        states: (T, H) of the tokens.
        by_expert: (P,) int64, the slots of the pairs, of T · K slots in all; others' places are not set.
        slots: K of a token.
    """
    pairs, (tokens, width) = len(by_expert), states.shape
    inputs = states.new_empty(pairs, width)
    position = torch.empty(tokens * slots, dtype=torch.int32, device=states.device)
    _launch(
        _gather_pairs, pairs, states.contiguous(), by_expert, inputs, position, slots, **_row_shape(width)
    )
    return inputs, position


@triton.jit(do_not_specialize=["slots", "num_experts"])
def _sum_slots(
    outputs, position, experts, weights, sums, slots, num_experts,
    ALL: tl.constexpr, WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < WIDTH
    total = tl.zeros((BLOCK,), tl.float32)
    for slot in range(slots):
        place = token * slots + slot
        used = True
        if not ALL:
            used = tl.load(experts + place) < num_experts
        if used:
            row = tl.load(position + place).to(tl.int64) * WIDTH
            output = tl.load(outputs + row + column, mask=inside, other=0.0).to(tl.float32)
            total += tl.load(weights + place).to(tl.float32) * output
    tl.store(sums + token * WIDTH + column, total.to(sums.dtype.element_ty), mask=inside)


def sum_slots(
    outputs: torch.Tensor,
    position: torch.Tensor,
    experts: torch.Tensor,
    weights: torch.Tensor,
    num_experts: int,
    all_used: bool,
) -> torch.Tensor:
    """Each token's weighted sum of what its experts gave: (T, H) in the dtype of the outputs.

    Args:
        outputs: (P, H).
        position: (T · K,) int32, the row of each slot that is used.
        experts: (T, K) int64; `num_experts` marks a slot that is not used.
        weights: (T, K).
        num_experts: E.
        all_used: whether every slot is.
    """
    tokens, slots = experts.shape
    sums = outputs.new_empty(tokens, outputs.shape[1])
    _launch(
        _sum_slots, tokens, outputs, position, experts.contiguous(), weights.contiguous(), sums, slots,
        num_experts, ALL=all_used, **_row_shape(outputs.shape[1]),
    )  # fmt: skip
    return sums


@triton.jit(do_not_specialize=["size"])
def _score_targets(logits, targets, log_probabilities, best, size, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    own = logits + row * size
    lane = tl.arange(0, BLOCK)
    top = tl.full((BLOCK,), _LOWEST, tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    place = lane
    for start in range(0, size, BLOCK):
        column = start + lane
        value = tl.load(own + column, mask=column < size, other=_LOWEST).to(tl.float32)
        higher = tl.maximum(top, value)
        total = total * tl.exp(top - higher) + tl.exp(value - higher)
        place = tl.where(value > top, column, place)
        top = higher
    highest = tl.max(top, 0)
    total = tl.sum(total * tl.exp(top - highest), 0)
    chosen = tl.load(own + tl.load(targets + row)).to(tl.float32)
    tl.store(log_probabilities + row, chosen - (highest + tl.log(total)))
    tl.store(best + row, tl.min(tl.where(top == highest, place, size), 0).to(tl.int64))


def score_targets(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """ln p of targets (P,) given logits (P, V), and the most likely tokens: (P,) float32, (P,) int64."""
    rows, size = logits.shape
    log_probabilities = torch.empty(rows, dtype=torch.float32, device=logits.device)
    best = torch.empty_like(targets)
    options = {"BLOCK": _VOCABULARY_BLOCK, "num_warps": 8}
    _launch(_score_targets, rows, logits.contiguous(), targets, log_probabilities, best, size, **options)
    return log_probabilities, best
