"""Nyström attention: softmax attention through a few landmarks, in time and memory linear in the tokens.

Xiong et al., "Nyströmformer: A Nyström-based Algorithm for Approximating Self-Attention", AAAI 2021; the iterative
pseudo-inverse: Razavi et al., "A new iterative method for finding approximate inverses of complex matrices", 2014.

With queries Q, keys K, values V (T tokens) and M landmarks Q̃, K̃, the means of the queries and keys of M segments of
the sequence, each head computes

    softmax(Q K̃ᵀ/√d) · softmax(Q̃ K̃ᵀ/√d)⁺ · (softmax(Q̃ Kᵀ/√d) V)          in place of          softmax(Q Kᵀ/√d) V

Here T is the sequence with its class token, M landmarks, H heads, d the width of a head, L = H · d.

**Segments.** All have ceil(T / M) tokens, counted from the end; the first has what is left. The paper makes T a
multiple of M with padding, and public code puts zero tokens in front that take part like any other: they get
attention, and they become landmarks. Here nothing is filled in: a landmark is the mean of the tokens there are, and a
segment without any does not exist (so fewer landmarks than M may be in use). Where M divides T both are the same.
Where T ≤ M every token would be its own landmark, and softmax attention is what the product tends to: it is computed
as such.

**Order of the products.** From right to left, as bracketed above: both T × M matrices then stand at the outside of an
attention call of its own, of T queries on M keys and of M queries on T keys. A fused kernel computes each without
ever holding the matrix. Means are linear, so landmarks are projections of the segments' mean tokens.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, scaled_dot_product_attention

RESIDUAL_WIDTH = 33
"""Taps of the residual convolution along the sequence, in the paper and in TransMIL."""
ITERATIONS = 6
"""Of the pseudo-inverse, in the paper and in TransMIL."""


class NystromAttention(nn.Module):
    """Multi-head Nyström self-attention with a residual convolution on the values.

    Args:
        inner: token width L, a multiple of ``heads``.
        heads: H.
        landmarks: M, at most.
        dropout: on the result, in training.
    """

    def __init__(self, inner: int, heads: int, landmarks: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.landmarks = heads, landmarks
        self.query = nn.Linear(inner, inner, bias=False)
        self.key = nn.Linear(inner, inner, bias=False)
        self.value = nn.Linear(inner, inner, bias=False)
        bound = RESIDUAL_WIDTH**-0.5
        self.residual_HR = nn.Parameter(torch.empty(heads, RESIDUAL_WIDTH).uniform_(-bound, bound))
        self.out = nn.Linear(inner, inner)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_TL: Tensor) -> Tensor:
        """Return the attention's result for every token (T, L)."""
        value_TL = self.value(x_TL)
        return self._result(self._attended(self.query(x_TL), x_TL, value_TL) + self._convolve(value_TL))

    def first_token(self, x_TL: Tensor) -> Tensor:
        """Return ``forward(x_TL)[:1]``, which needs no queries, and hardly any residuals, of the other tokens."""
        near_tL = x_TL[: 1 + RESIDUAL_WIDTH // 2]
        residual_1L = self._convolve(self.value(near_tL))[:1]
        return self._result(self._attended(self.query(near_tL[:1]), x_TL, self.value(x_TL)) + residual_1L)

    def first_token_scores(self, x_TL: Tensor) -> Tensor:
        """Return the first token's raw softmax-attention scores on every token (H, T): q·k/√d, nothing approximated."""
        query_Hd = self.query(x_TL[0]).view(self.heads, -1)
        # q·(W x) = (Wᵀ q)·x: the keys of all tokens are not needed again.
        probe_HL = torch.einsum("hd,hdl->hl", query_Hd, self.key.weight.view(*query_Hd.shape, -1))
        scores_HT: Tensor = probe_HL @ x_TL.T * query_Hd.shape[1] ** -0.5
        return scores_HT

    def _attended(self, query_tL: Tensor, x_TL: Tensor, value_TL: Tensor) -> Tensor:
        """Return the Nyström product for some queries on all tokens, (t, L)."""
        query_Htd, key_HTd, value_HTd = map(self._split, (query_tL, self.key(x_TL), value_TL))
        if len(x_TL) <= self.landmarks:
            attended_Htd = _attend(query_Htd, key_HTd, value_HTd)
        else:
            means_ML = segment_means(x_TL, self.landmarks)
            landmark_query_HMd, landmark_key_HMd = self._split(self.query(means_ML)), self._split(self.key(means_ML))
            summaries_HMd = _attend(landmark_query_HMd, key_HTd, value_HTd)
            bridged_HMd = _bridge(landmark_query_HMd, landmark_key_HMd, summaries_HMd)
            attended_Htd = _attend(query_Htd, landmark_key_HMd, bridged_HMd)
        return attended_Htd.transpose(0, 1).flatten(1)

    def _result(self, attended_tL: Tensor) -> Tensor:
        """Return the output projection, with dropout in training."""
        result_tL: Tensor = self.dropout(self.out(attended_tL))
        return result_tL

    def _split(self, x_TL: Tensor) -> Tensor:
        """Return the heads' views of the tokens, (H, T, d)."""
        return x_TL.view(len(x_TL), self.heads, -1).transpose(0, 1)

    def _convolve(self, value_TL: Tensor) -> Tensor:
        """Convolve the values along the sequence, zeros around it, with one kernel for the d channels of a head."""
        width = value_TL.shape[1]
        # As an image of width 1 whose channels lie innermost, the layout in which depthwise convolution is fastest.
        kernel_L11R = self.residual_HR.repeat_interleave(width // self.heads, dim=0)[:, None, :, None]
        image_1LT1 = value_TL.T[None, :, :, None]
        convolved_1LT1 = conv2d(image_1LT1, kernel_L11R, padding=(RESIDUAL_WIDTH // 2, 0), groups=width)
        return convolved_1LT1[0, :, :, 0].T


def segment_means(x_TL: Tensor, n_segments: int) -> Tensor:
    """Return the mean tokens of segments of ceil(T / n_segments), counted from the end; the first has the rest."""
    length = -(-len(x_TL) // n_segments)
    n_rest = (len(x_TL) - 1) // length * length
    first_TL, rest_TL = torch.split(x_TL, [len(x_TL) - n_rest, n_rest])
    rest_ML = rest_TL.reshape(n_rest // length, length, -1).mean(dim=1) if n_rest else rest_TL
    return torch.cat([first_TL.mean(dim=0, keepdim=True), rest_ML])


def pseudo_inverse(matrix_HMM: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Return Z ≈ A⁺ for each square matrix A: Z₀ = Aᵀ / (‖A‖₁ ‖A‖∞), then the third-order iteration of Razavi et al.

    Z ← Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4. Directions of A with very small singular values are not inverted in
    six steps but left small: 3.25⁶ times Z₀'s at most.
    """
    identity_MM = torch.eye(matrix_HMM.shape[-1], dtype=matrix_HMM.dtype, device=matrix_HMM.device)
    size_HMM = matrix_HMM.abs()
    norms_H = size_HMM.sum(dim=-2).amax(dim=-1) * size_HMM.sum(dim=-1).amax(dim=-1)
    inverse_HMM = matrix_HMM.mT / norms_H[:, None, None]
    for _ in range(iterations):
        product_HMM = matrix_HMM @ inverse_HMM
        inner_HMM = 15 * identity_MM - product_HMM @ (7 * identity_MM - product_HMM)
        inverse_HMM = 0.25 * inverse_HMM @ (13 * identity_MM - product_HMM @ inner_HMM)
    return inverse_HMM


def _attend(query_Htd: Tensor, key_HTd: Tensor, value_HTd: Tensor) -> Tensor:
    """Return softmax(q kᵀ/√d) v. Only with a batch dimension do the fused kernels take it."""
    return scaled_dot_product_attention(query_Htd[None], key_HTd[None], value_HTd[None])[0]


def _bridge(query_HMd: Tensor, key_HMd: Tensor, summaries_HMd: Tensor) -> Tensor:
    """Return softmax(Q̃ K̃ᵀ/√d)⁺ · summaries, at least in float32: half precision does not survive the iteration."""
    with torch.autocast(query_HMd.device.type, enabled=False):
        dtype = torch.promote_types(query_HMd.dtype, torch.float32)
        query_HMd, key_HMd = query_HMd.to(dtype), key_HMd.to(dtype)
        kernel_HMM = torch.softmax(query_HMd @ key_HMd.mT * query_HMd.shape[-1] ** -0.5, dim=-1)
        return (pseudo_inverse(kernel_HMM) @ summaries_HMd.to(dtype)).to(summaries_HMd.dtype)
