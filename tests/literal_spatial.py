"""Attention by where patches lie, written out: every pair, float64, distances in whole numbers; and layouts to try."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def squared_distances(queries_N2: Tensor, keys_M2: Tensor) -> list[list[int]]:
    return [[(x - a) ** 2 + (y - b) ** 2 for a, b in keys_M2.tolist()] for x, y in queries_N2.tolist()]


def dense_attention(
    q_HNd: Tensor,
    k_HMd: Tensor,
    v_HMd: Tensor,
    squared_NM: Sequence[Sequence[int]],
    *,
    radius: int | None = None,
    far: int | None = None,
    log_counts_M: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return what each query gets (H, N, d) and the probabilities (H, N, M), both float64."""
    heads, _, d = q_HNd.shape
    floors = [[math.isqrt(square) for square in row] for row in squared_NM]
    if far is not None:
        floors = [[min(floor, far) for floor in row] for row in floors]
    distance_NM = torch.tensor(floors, dtype=torch.float64)
    outs, probabilities = [], []
    for h in range(heads):
        scores_NM = q_HNd[h].double() @ k_HMd[h].double().T / math.sqrt(d) - 2 ** (-8 * (h + 1) / heads) * distance_NM
        if log_counts_M is not None:
            scores_NM = scores_NM + log_counts_M
        if radius is not None:
            is_far_NM = torch.tensor([[square > radius**2 for square in row] for row in squared_NM])
            scores_NM = scores_NM.masked_fill(is_far_NM, -math.inf)
        weights_NM = torch.exp(scores_NM - scores_NM.detach().amax(dim=1, keepdim=True))
        p_NM = weights_NM / weights_NM.sum(dim=1, keepdim=True)
        outs.append(p_NM @ v_HMd[h].double())
        probabilities.append(p_NM)
    return torch.stack(outs), torch.stack(probabilities)


def random_qkv(
    heads: int, n: int, d: int, dtype: torch.dtype = torch.float64, *, keys: int | None = None
) -> list[Tensor]:
    """Queries, keys, values that want gradients."""
    generator = torch.Generator().manual_seed(1000 * heads + n)
    return [
        torch.randn(heads, rows, d, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for rows in (n, keys or n, keys or n)
    ]


def weights_like(out: Tensor) -> Tensor:
    """Fixed numbers, so that the sum of out · weights has different gradients in every place."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


def with_gradients(out_HNd: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """The result per token, then the gradients of a weighted sum of it in all inputs."""
    loss = (out_HNd.double() * weights_like(out_HNd)).sum()
    return [out_HNd.detach(), *torch.autograd.grad(loss, list(inputs))]


def assert_near(got: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float) -> None:
    """Everywhere within the tolerance, relative to the largest number where that is above 1."""
    names = ("out", "dq", "dk", "dv")[: len(expected)]
    for name, one, other in zip(names, got, expected, strict=True):
        assert one.isfinite().all(), name
        error = (one.double() - other.double()).abs().max().item()
        assert error <= tolerance * max(1.0, other.abs().max().item()), (name, error)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tissue_cells(n: int, *, seed: int = 0, cover: float = 0.6) -> Tensor:
    """About ``n`` cells of a square of which ``cover`` is covered: random discs of tissue, with holes."""
    edge = math.ceil(math.sqrt(n / cover))
    generator = _generator(seed)
    y, x = torch.meshgrid(torch.arange(edge), torch.arange(edge), indexing="ij")
    height = torch.zeros(edge, edge, dtype=torch.float64)
    for _ in range(40):
        cx, cy, size = torch.rand(3, generator=generator, dtype=torch.float64).tolist()
        sign = 1 if size > 0.3 else -1
        height += sign * torch.exp(-((x / edge - cx) ** 2 + (y / edge - cy) ** 2) / (0.02 + 0.05 * size) ** 2)
    return torch.stack([x.flatten(), y.flatten()], dim=1)[height.flatten().argsort(descending=True)[:n]]


def scattered_cells(n: int, edge: int) -> Tensor:
    places_N = torch.randperm(edge * edge, generator=_generator(n))[:n]
    return torch.stack([places_N % edge, places_N // edge], dim=1)


def _shuffled(cells_N2: Tensor) -> Tensor:
    return cells_N2[torch.randperm(len(cells_N2), generator=_generator(5))]


def _line(n: int) -> Tensor:
    """A line with gaps."""
    return torch.stack([torch.arange(n) + torch.arange(n) // 9 * 4, torch.zeros(n, dtype=torch.int64)], dim=1)


LAYOUTS: dict[str, Callable[[], Tensor]] = {
    "tissue with holes": lambda: tissue_cells(300),
    "shuffled tissue": lambda: _shuffled(tissue_cells(200)),
    "scatter": lambda: scattered_cells(150, 60),
    "duplicates": lambda: scattered_cells(40, 9)[torch.randint(40, (130,), generator=_generator(1))],
    "all in one cell": lambda: torch.zeros(150, 2, dtype=torch.int64),
    "a crowded cell in tissue": lambda: torch.cat([tissue_cells(60), tissue_cells(60)[:1].expand(140, 2)]),
    "one far away": lambda: torch.cat([tissue_cells(80), torch.tensor([[500, 700]])]),
    "one row": lambda: _line(90),
    "one column": lambda: _line(90).flip(1),
    "one patch": lambda: torch.zeros(1, 2, dtype=torch.int64),
    "two clumps far apart": lambda: torch.cat(
        [tissue_cells(50), tissue_cells(70, seed=1) + torch.tensor([3_000_000, 9_000_000])]
    ),
}
