"""Attention pooling of one bag, with gated or linear scores: the kernel below ABMIL and ACMIL.

    h_NL  = dropout(relu(x W + b))
    g_NA  = dropout(tanh(h V) ⊙ sigmoid(h U))        gated (Ilse et al., ICML 2018, eq. 9); without a gate, g = h
    s_KN  = S g                                      raw scores; the caller may then mask some
    a_KN  = softmax over N of s
    pooled_KL = a h

Written as one autograd function that walks over the instances in chunks, forward and backward. Plain autograd would
convert the whole bag to float32 (a file holds float16), and keep and differentiate a dozen arrays of N × L. Here a
chunk's rows are converted when they meet the first product, everything elementwise happens while they are in the cache,
and what stays for the backward pass is h and the gate before its activations, both in the type of the products. Masks
of dropout are not stored: a dropped h is zero, where relu's gradient is zero anyway; a dropped gate is a sigmoid of
-inf. Without gradients nothing of size N × L is kept: the softmax runs along with the chunks.

Precision: the products run in autocast's type where autocast is on, else in the weights'; gate, scores, softmax and all
sums over chunks in float32 at least, in float64 for float64 weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fedpath.core.models.dropout import drop_, keep_mask, kept_share
from fedpath.core.models.memory import Scratch, large_empty
from fedpath.core.models.rows import product_type, row_chunks

Select = Callable[[Tensor], Tensor]
"""Raw scores (K, N) to scores (K, N) of which some may be -inf, at least one a row finite; no gradient of its own."""

# Rows at a time: on a CPU few enough for the cache, and enough for efficient products and few waits of the threads for
# each other; on a GPU enough to fill it.
_CPU_ROWS, _GPU_ROWS = 4096, 16384


@dataclass(frozen=True, slots=True)
class Hidden:
    """The first layer, ``h = dropout(relu(x W + b))``."""

    weight_LD: Tensor
    bias_L: Tensor | None = None
    dropout: float = 0.0
    """Rate; give 0 outside training."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The gate, ``dropout(tanh(h V) ⊙ sigmoid(h U))``."""

    weight_GL: Tensor
    """V above U, each (A, L): G = 2A."""
    bias_G: Tensor | None = None
    dropout: float = 0.0
    """Rate on the product. Dropout at rate p on both of its factors is dropout at 1 - (1 - p)² on the product."""


def attention_pool(
    x_ND: Tensor,
    hidden: Hidden,
    gate: Gate | None,
    score_weight_KA: Tensor,
    score_bias_K: Tensor | None = None,
    *,
    select: Select | None = None,
    rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Pool one bag; see the module's docstring for the formulas.

    Args:
        x_ND: features of any float type, N ≥ 1, on the weights' device; never copied whole.
        hidden: the first layer.
        gate: absent for linear scores; A is then L.
        score_weight_KA: S.
        score_bias_K: added to the raw scores.
        select: masks raw scores before the softmax, as in STKIM.
        rows: instances a chunk; the default fits the device. The result depends on it by rounding, and with dropout by
            the draw.

    Returns:
        ``pooled_KL`` in the weights' type and ``attention_KN`` (rows sum to 1) in the type of the scores. Both are
        differentiable, in all weights and, where it asks for a gradient, in ``x_ND``.
    """
    plan = _Plan(
        products=product_type(hidden.weight_LD),
        sums=torch.promote_types(hidden.weight_LD.dtype, torch.float32),
        rows=rows or (_CPU_ROWS if x_ND.device.type == "cpu" else _GPU_ROWS),
        dropout=hidden.dropout,
        gate_dropout=gate.dropout if gate else 0.0,
        select=select,
    )
    gate_weight_GL, gate_bias_G = (gate.weight_GL, gate.bias_G) if gate else (None, None)
    weights = _Weights(hidden.weight_LD, hidden.bias_L, gate_weight_GL, gate_bias_G, score_weight_KA, score_bias_K)
    with torch.autocast(x_ND.device.type, enabled=False):
        if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x_ND, *weights)):
            pooled_KL, attention_KN = _AttentionPool.apply(plan, x_ND, *weights)  # type: ignore[no-untyped-call]
        else:
            with torch.no_grad():
                pooled_KL, attention_KN = _pool_and_forget(_Layers(plan, weights), x_ND)
    return pooled_KL.to(hidden.weight_LD.dtype), attention_KN


@dataclass(frozen=True, slots=True)
class _Plan:
    """What is not a tensor."""

    products: torch.dtype
    sums: torch.dtype
    rows: int
    dropout: float
    gate_dropout: float
    select: Select | None


class _Weights(NamedTuple):
    """All weights, the caller's or scaled, or their gradients."""

    hidden_LD: Tensor
    hidden_bias_L: Tensor | None
    gate_GL: Tensor | None
    gate_bias_G: Tensor | None
    score_KA: Tensor
    score_bias_K: Tensor | None


class _Layers:
    """The weights as the products take them, scaled, and the layers of one chunk (n rows).

    Scales are in the weights, where they cost nothing:

    - dropout's in W and b, as relu(c z) = c relu(z) for c > 0, so that a mask only has to zero;
    - tanh(v) = 2 (sigmoid(2 v) - ½), and torch's sigmoid is up to ten times as fast as its tanh: V and S are doubled,
      one sigmoid does for both halves, and the gate is (sigmoid(v) - ½) ⊙ sigmoid(u).
    """

    def __init__(self, plan: _Plan, weights: _Weights) -> None:
        self.plan = plan
        self.scratch = Scratch(weights.hidden_LD.device)
        ones = torch.ones((), dtype=plan.sums, device=weights.hidden_LD.device)
        hidden, gate_G1, score = ones / kept_share(plan.dropout), ones, ones
        if weights.gate_GL is not None:
            gate_G1 = ones.repeat(len(weights.gate_GL), 1)
            gate_G1[: len(gate_G1) // 2] = 2
            score = 2 * ones / kept_share(plan.gate_dropout)
        self.scales = (hidden, hidden, gate_G1, gate_G1.squeeze(-1), score, ones)

        # Linear scores are a large product; those of a gate are a small one, and stay exact.
        scores = plan.products if weights.gate_GL is None else plan.sums
        types = (plan.products, plan.products, plan.products, plan.products, scores, plan.sums)
        self.scaled = _Weights._make(
            (
                None if weight is None else (weight * scale).to(dtype)
                for weight, scale, dtype in zip(weights, self.scales, types, strict=True)
            )
        )

    def scores(self, x_nD: Tensor, h_nL: Tensor, gate_nG: Tensor | None) -> Tensor:
        """Write a chunk's h and its gate before the sigmoids; return its raw scores (K, n)."""
        _linear(x_nD, self.scaled.hidden_LD, self.scaled.hidden_bias_L, h_nL).relu_()
        if self.plan.dropout:
            drop_(h_nL, self.plan.dropout, self.scratch)
        scored_nA = h_nL
        if gate_nG is not None and self.scaled.gate_GL is not None:
            _linear(h_nL, self.scaled.gate_GL, self.scaled.gate_bias_G, gate_nG)
            if self.plan.gate_dropout:
                u_nA = gate_nG.chunk(2, dim=1)[1]
                u_nA.masked_fill_(keep_mask(tuple(u_nA.shape), self.plan.gate_dropout, u_nA.device) == 0, -torch.inf)
            _, v_nA, u_nA = self.activate(gate_nG)
            scored_nA = v_nA.mul_(u_nA)
        scores_Kn = (self.scaled.score_KA @ scored_nA.T).to(self.plan.sums)
        bias_K = self.scaled.score_bias_K
        return scores_Kn if bias_K is None else scores_Kn.add_(bias_K[:, None])

    def activate(self, gate_nG: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the sigmoids of a chunk's gate, and the gate's factors: sigmoid(v) - ½ and sigmoid(u)."""
        sigmoid_nG = self.scratch("sigmoid", gate_nG.shape, self.plan.sums).copy_(gate_nG).sigmoid_()
        v_nA, u_nA = sigmoid_nG.chunk(2, dim=1)
        return sigmoid_nG, torch.sub(v_nA, 0.5, out=self.scratch("v", v_nA.shape, self.plan.sums)), u_nA

    def add_product(self, total: Tensor, a: Tensor, b: Tensor) -> None:
        """Add ``a b`` to ``total``, which may be of a wider type."""
        if total.dtype == a.dtype:
            total.addmm_(a, b)
        else:
            product = torch.mm(a, b, out=self.scratch("product", total.shape, a.dtype))
            total.add_(self.scratch("wide product", total.shape, total.dtype).copy_(product))


class _AttentionPool(torch.autograd.Function):
    """The pooling with h and the gate saved."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, x_ND: Tensor, *weights: Any) -> tuple[Tensor, Tensor]:
        pooled_KL, attention_KN, h_NL, gate_NG = _pool_and_keep(_Layers(plan, _Weights(*weights)), x_ND)
        ctx.plan = plan
        ctx.save_for_backward(x_ND, *weights, h_NL, gate_NG, attention_KN)
        return pooled_KL, attention_KN

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_pooled_KL: Tensor, d_attention_KN: Tensor) -> tuple[Tensor | None, ...]:
        plan: _Plan = ctx.plan
        x_ND, *saved, h_NL, gate_NG, attention_KN = ctx.saved_tensors
        weights = _Weights(*saved)
        with torch.autocast(x_ND.device.type, enabled=False):
            layers = _Layers(plan, weights)
            sums = _Sums(layers, weights)
            d_x_ND = torch.empty_like(x_ND) if ctx.needs_input_grad[1] else None
            d_pooled_KL = d_pooled_KL.to(plan.products)
            d_attention_KN = d_attention_KN + d_pooled_KL @ h_NL.T
            d_scores_KN = attention_KN * (d_attention_KN - (d_attention_KN * attention_KN).sum(dim=1, keepdim=True))
            attention_KN = attention_KN.to(plan.products)
            for chunk, x_nD in row_chunks(x_ND, plan.products, plan.rows):
                h_nL, gate_nG = h_NL[chunk], None if gate_NG is None else gate_NG[chunk]
                d_h_nL = sums.scores_backward(d_scores_KN[:, chunk], h_nL, gate_nG)
                d_h_nL.addmm_(attention_KN[:, chunk].T, d_pooled_KL)
                sums.hidden_backward(d_h_nL, h_nL, x_nD, None if d_x_ND is None else d_x_ND[chunk])
            return None, d_x_ND, *sums.gradients()


class _Sums:
    """The weights' gradients, summed up chunk by chunk."""

    def __init__(self, layers: _Layers, weights: _Weights) -> None:
        self.layers = layers
        self.weights = weights
        # Of the scaled weights, until the end.
        self.sums = _Weights._make(w if w is None else torch.zeros_like(w, dtype=layers.plan.sums) for w in weights)

    def scores_backward(self, d_scores_Kn: Tensor, h_nL: Tensor, gate_nG: Tensor | None) -> Tensor:
        """Return the gradient of h that comes through the scores of a chunk."""
        layers, sums = self.layers, self.sums
        scaled, plan, scratch = layers.scaled, layers.plan, layers.scratch
        d_h_nL = scratch("d_h", h_nL.shape, h_nL.dtype)
        if sums.score_bias_K is not None:
            sums.score_bias_K.add_(d_scores_Kn.sum(1))
        if gate_nG is None or scaled.gate_GL is None or sums.gate_GL is None:
            d_scores_Kn = d_scores_Kn.to(plan.products)
            layers.add_product(sums.score_KA, d_scores_Kn, h_nL)
            return torch.mm(d_scores_Kn.T, scaled.score_KA, out=d_h_nL)
        sigmoid_nG, v_nA, u_nA = layers.activate(gate_nG)
        d_product_nA = torch.mm(d_scores_Kn.T, scaled.score_KA, out=scratch("d_product", v_nA.shape, plan.sums))
        d_gate_nG = scratch("d_gate", gate_nG.shape, plan.sums)
        d_v_nA, d_u_nA = d_gate_nG.chunk(2, dim=1)
        torch.mul(d_product_nA, u_nA, out=d_v_nA)
        torch.mul(d_product_nA, v_nA, out=d_u_nA)
        layers.add_product(sums.score_KA, d_scores_Kn, v_nA.mul_(u_nA))
        torch.ops.aten.sigmoid_backward.grad_input(d_gate_nG, sigmoid_nG, grad_input=d_gate_nG)
        if sums.gate_bias_G is not None:
            sums.gate_bias_G.add_(d_gate_nG.sum(0))
        if plan.products != plan.sums:
            d_gate_nG = scratch("d_gate as factor", gate_nG.shape, plan.products).copy_(d_gate_nG)
        layers.add_product(sums.gate_GL, d_gate_nG.T, h_nL)
        return torch.mm(d_gate_nG, scaled.gate_GL, out=d_h_nL)

    def hidden_backward(self, d_h_nL: Tensor, h_nL: Tensor, x_nD: Tensor, d_x_nD: Tensor | None) -> None:
        """Go on from the whole gradient of h to the first layer, and to the features if ``d_x_nD`` is to be written."""
        # From here on the gradient before the relu: h is zero where relu or dropout stopped it.
        torch.ops.aten.threshold_backward.grad_input(d_h_nL, h_nL, 0, grad_input=d_h_nL)
        if self.sums.hidden_bias_L is not None:
            self.sums.hidden_bias_L.add_(d_h_nL.sum(0))
        self.layers.add_product(self.sums.hidden_LD, d_h_nL.T, x_nD)
        if d_x_nD is not None:
            d_x_nD.copy_(d_h_nL @ self.layers.scaled.hidden_LD)

    def gradients(self) -> list[Tensor | None]:
        """Return the gradients of the caller's weights, in their types."""
        return [
            None if w is None or g is None else (g * scale).to(w.dtype)
            for w, g, scale in zip(self.weights, self.sums, self.layers.scales, strict=True)
        ]


def _pool_and_keep(layers: _Layers, x_ND: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Return the pooled vectors, the attention, h and the gate before its sigmoids."""
    plan, n, gate = layers.plan, len(x_ND), layers.scaled.gate_GL
    h_NL = large_empty((n, len(layers.scaled.hidden_LD)), plan.products, x_ND.device)
    gate_NG = None if gate is None else large_empty((n, len(gate)), plan.products, x_ND.device)
    scores_KN = x_ND.new_empty((len(layers.scaled.score_KA), n), dtype=plan.sums)
    for chunk, x_nD in row_chunks(x_ND, plan.products, plan.rows):
        scores_KN[:, chunk] = layers.scores(x_nD, h_NL[chunk], None if gate_NG is None else gate_NG[chunk])
    if plan.select is not None:
        scores_KN = plan.select(scores_KN)
    attention_KN = torch.softmax(scores_KN, dim=1)
    pooled_KL = scores_KN.new_zeros((len(scores_KN), h_NL.shape[1]))
    chunks = zip(torch.split(attention_KN.to(plan.products), plan.rows, 1), torch.split(h_NL, plan.rows), strict=True)
    for attention_Kn, h_nL in chunks:
        layers.add_product(pooled_KL, attention_Kn, h_nL)
    return pooled_KL, attention_KN, h_NL, gate_NG


def _pool_and_forget(layers: _Layers, x_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return the pooled vectors and the attention; of h and the gate one chunk at a time is held.

    The softmax runs along: each chunk is weighted relative to the highest score so far, and what was summed before is
    scaled down when a higher one comes.
    """
    plan, scaled, scratch = layers.plan, layers.scaled, layers.scratch
    if plan.select is not None:  # no score is final before all are known
        return _pool_and_keep(layers, x_ND)[:2]
    scores_KN = x_ND.new_empty((len(scaled.score_KA), len(x_ND)), dtype=plan.sums)
    highest_K1 = scores_KN.new_full((len(scores_KN), 1), -torch.inf)
    total_K1, pooled_KL = torch.zeros_like(highest_K1), scores_KN.new_zeros((len(scores_KN), len(scaled.hidden_LD)))
    for chunk, x_nD in row_chunks(x_ND, plan.products, plan.rows):
        n = len(x_nD)
        h_nL = scratch("h", (n, len(scaled.hidden_LD)), plan.products)
        gate_nG = None if scaled.gate_GL is None else scratch("gate", (n, len(scaled.gate_GL)), plan.products)
        scores_Kn = layers.scores(x_nD, h_nL, gate_nG)
        before_K1, highest_K1 = highest_K1, torch.maximum(highest_K1, scores_Kn.amax(1, keepdim=True))
        weights_Kn, shrink_K1 = torch.exp(scores_Kn - highest_K1), torch.exp(before_K1 - highest_K1)
        total_K1 = total_K1 * shrink_K1 + weights_Kn.sum(1, keepdim=True)
        pooled_KL *= shrink_K1
        layers.add_product(pooled_KL, weights_Kn.to(plan.products), h_nL)
        scores_KN[:, chunk] = scores_Kn
    return pooled_KL / total_K1, torch.softmax(scores_KN, dim=1)


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, out: Tensor) -> Tensor:
    """Write ``x weightᵀ + bias``."""
    return torch.mm(x, weight.T, out=out) if bias is None else torch.addmm(bias, x, weight.T, out=out)
