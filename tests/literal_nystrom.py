"""Nyström attention written out with explicit matrices, slowly: what the fast one is held to."""

import math

import torch
from torch import Tensor


def literal_softmax(rows: list[Tensor], columns: list[Tensor]) -> Tensor:
    """Return the matrix exp(row · column / √d), each row divided by its sum."""
    matrix = torch.stack(
        [torch.stack([torch.exp(row.dot(column) / math.sqrt(len(row))) for column in columns]) for row in rows]
    )
    return matrix / matrix.sum(dim=1)[:, None]


def literal_pseudo_inverse(a: Tensor) -> Tensor:
    m = len(a)
    row_sum = max((sum(abs(a[i, j]) for j in range(m)) for i in range(m)), key=Tensor.item)
    column_sum = max((sum(abs(a[i, j]) for i in range(m)) for j in range(m)), key=Tensor.item)
    identity = torch.diag(torch.ones(m, dtype=a.dtype))
    z = a.T / (row_sum * column_sum)
    for _ in range(6):
        z = z @ (13 * identity - a @ z @ (15 * identity - a @ z @ (7 * identity - a @ z))) / 4
    return z


def literal_nystrom(p: dict[str, Tensor], x_TL: Tensor, heads: int, landmarks: int) -> Tensor:
    """The paper's three matrices, head by head; places filled in front to a multiple of the landmarks stay empty."""
    n, depth = len(x_TL), x_TL.shape[1] // heads
    length = math.ceil(n / landmarks)
    places = [None] * (length * landmarks - n) + list(range(n))
    segments = [[i for i in places[s : s + length] if i is not None] for s in range(0, len(places), length)]
    segments = [segment for segment in segments if segment]
    results = []
    for head in range(heads):
        rows = slice(head * depth, (head + 1) * depth)
        q, k, v = ([p[f"{name}.weight"][rows] @ x for x in x_TL] for name in ("query", "key", "value"))
        q_means = [sum(q[i] for i in segment) / len(segment) for segment in segments]
        k_means = [sum(k[i] for i in segment) / len(segment) for segment in segments]
        if n <= landmarks:
            mixing = literal_softmax(q, k)
        else:
            bridge = literal_pseudo_inverse(literal_softmax(q_means, k_means))
            mixing = literal_softmax(q, k_means) @ bridge @ literal_softmax(q_means, k)
        kernel = p["residual_HR"][head]
        results.append(
            torch.stack(
                [
                    sum((mixing[i, j] * v[j] for j in range(n)), torch.zeros(depth, dtype=x_TL.dtype))
                    + sum(kernel[r] * v[i + r - 16] for r in range(33) if 0 <= i + r - 16 < n)
                    for i in range(n)
                ]
            )
        )
    return torch.stack([p["out.weight"] @ x + p["out.bias"] for x in torch.cat(results, dim=1)])
