"""The chunked pooling against the plain formulas and ordinary autograd, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedpath.core.models.dropout import keep_mask, kept_share
from fedpath.core.models.gated_pool import Gate, Hidden, attention_pool

D, L, A, K = 6, 8, 16, 3

chunked = pytest.mark.parametrize("rows", [1, 5, 16, None])


def tensors(n: int, *, gated: bool, bias: bool, dtype: torch.dtype = torch.float64) -> dict[str, Tensor | None]:
    generator = torch.Generator().manual_seed(n)
    shapes = {
        "x": (n, D),
        "W": (L, D),
        "b": (L,),
        "VU": (2 * A, L),
        "vu": (2 * A,),
        "S": (K, A if gated else L),
        "s": (K,),
    }
    missing = (set() if bias else {"b", "vu", "s"}) | (set() if gated else {"VU", "vu"})
    made = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    return {name: None if name in missing else t.to(dtype).requires_grad_() for name, t in made.items()}


def pool(
    t: dict[str, Any], *, dropout: float = 0.0, gate_dropout: float = 0.0, **options: Any
) -> tuple[Tensor, Tensor]:
    gate = None if t["VU"] is None else Gate(t["VU"], t["vu"], gate_dropout)
    return attention_pool(t["x"], Hidden(t["W"], t["b"], dropout), gate, t["S"], t["s"], **options)


def literal(
    t: dict[str, Any], *, keep_h: Tensor | float = 1.0, keep_g: Tensor | float = 1.0, masked: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The formulas of the module's docstring; ``keep_…`` are masks with their scale."""
    h_NL = torch.relu(t["x"] @ t["W"].T + (0 if t["b"] is None else t["b"])) * keep_h
    g_NA = h_NL
    if t["VU"] is not None:
        v_NA, u_NA = (h_NL @ t["VU"].T + (0 if t["vu"] is None else t["vu"])).split(A, dim=1)
        g_NA = torch.tanh(v_NA) / (1 + torch.exp(-u_NA)) * keep_g
    s_KN = (g_NA @ t["S"].T + (0 if t["s"] is None else t["s"])).T
    if masked is not None:
        s_KN = torch.where(masked, -torch.inf, s_KN)
    e_KN = torch.exp(s_KN - s_KN.detach().amax(dim=1, keepdim=True))
    a_KN = e_KN / e_KN.sum(dim=1, keepdim=True)
    return a_KN @ h_NL, a_KN


def gradients(t: dict[str, Tensor | None], outputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Of a loss that needs both outputs, in every tensor."""
    loss = sum((o * torch.linspace(-1, 1, o.numel(), dtype=o.dtype).view(o.shape)).sum() for o in outputs)
    wanted = {name: tensor for name, tensor in t.items() if tensor is not None and tensor.requires_grad}
    return dict(zip(wanted, torch.autograd.grad(loss + outputs[1].square().sum(), list(wanted.values())), strict=True))


def assert_same(t: dict[str, Tensor | None], got: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-12)
    expected = gradients(t, wanted)
    for name, gradient in gradients(t, got).items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=1e-9, atol=1e-11, msg=lambda m, name=name: f"{name}: {m}"
        )


@chunked
@pytest.mark.parametrize("n", [1, 2, 37])
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_the_plain_formulas(n: int, rows: int | None, gated: bool, bias: bool) -> None:
    t = tensors(n, gated=gated, bias=bias)
    wanted = literal(t)
    assert_same(t, pool(t, rows=rows), wanted)
    with torch.no_grad():  # another way through the chunks
        torch.testing.assert_close(pool(t, rows=rows), wanted, rtol=1e-10, atol=1e-12)


@chunked
@pytest.mark.parametrize(("gated", "gate_dropout"), [(False, 0.0), (True, 0.0), (True, 0.4)])
def test_dropout_zeroes_what_its_masks_drop_and_scales_the_rest(
    rows: int | None, gated: bool, gate_dropout: float
) -> None:
    t, n, dropout = tensors(37, gated=gated, bias=True), 37, 0.25
    size = rows or n
    torch.manual_seed(5)
    masks_h, masks_g = [], []
    for start in range(0, n, size):  # in the order of the chunks: h, then the gate
        masks_h.append(keep_mask((min(size, n - start), L), dropout))
        if gate_dropout:
            masks_g.append(keep_mask((min(size, n - start), A), gate_dropout))
    keep_g = torch.cat(masks_g).double() / kept_share(gate_dropout) if gate_dropout else 1.0
    wanted = literal(t, keep_h=torch.cat(masks_h).double() / kept_share(dropout), keep_g=keep_g)
    torch.manual_seed(5)
    assert_same(t, pool(t, dropout=dropout, gate_dropout=gate_dropout, rows=rows), wanted)
    torch.manual_seed(5)
    with torch.no_grad():
        again = pool(t, dropout=dropout, gate_dropout=gate_dropout, rows=rows)
    torch.testing.assert_close(again, wanted, rtol=1e-10, atol=1e-12)


@chunked
def test_selected_scores_get_neither_attention_nor_gradient(rows: int | None) -> None:
    t, n = tensors(37, gated=True, bias=True), 37
    masked_KN = torch.rand(K, n, generator=torch.Generator().manual_seed(0)) < 0.5

    def select(scores_KN: Tensor) -> Tensor:
        return scores_KN.masked_fill(masked_KN, -torch.inf)

    got = pool(t, select=select, rows=rows)
    assert torch.equal(got[1] == 0, masked_KN)
    assert_same(t, got, literal(t, masked=masked_KN))
    with torch.no_grad():
        torch.testing.assert_close(pool(t, select=select, rows=rows), literal(t, masked=masked_KN))


@pytest.mark.parametrize("gated", [False, True])
def test_gradcheck(gated: bool) -> None:
    t = tensors(11, gated=gated, bias=True)
    present = {name: tensor for name, tensor in t.items() if tensor is not None}

    def run(*values: Tensor) -> tuple[Tensor, Tensor]:
        torch.manual_seed(2)
        return pool(t | dict(zip(present, values, strict=True)), dropout=0.3, gate_dropout=0.2 * gated, rows=4)

    assert torch.autograd.gradcheck(run, list(present.values()))


def test_only_asked_gradients_reach_the_features() -> None:
    t = tensors(9, gated=True, bias=True)
    t["x"] = t["x"].detach()
    assert_same(t, pool(t, rows=4), literal(t))
    frozen = {name: None if v is None else v.detach().requires_grad_(name == "x") for name, v in t.items()}
    assert_same(frozen, pool(frozen, rows=4), literal(frozen))


@pytest.mark.parametrize("rows", [64, 256])
def test_scores_of_any_size_stay_finite_without_gradients(rows: int) -> None:
    t = tensors(500, gated=False, bias=False)
    with torch.no_grad():
        t["S"] *= 400.0
        pooled_KL, attention_KN = pool(t, rows=rows)
        torch.testing.assert_close((pooled_KL, attention_KN), literal(t), rtol=1e-10, atol=1e-12)
    assert attention_KN.max() > 0.99


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gated", [False, True])
def test_features_of_a_file_meet_float32_weights(dtype: torch.dtype, gated: bool) -> None:
    t = tensors(300, gated=gated, bias=True, dtype=torch.float32)
    t["x"] = t["x"].detach().to(dtype)
    exact = {name: None if v is None else v.detach().double().requires_grad_(v.requires_grad) for name, v in t.items()}
    got, wanted = pool(t, rows=64), literal(exact)
    assert {tensor.dtype for tensor in got} == {torch.float32}
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-6)
    expected = gradients(exact, wanted)
    for name, gradient in gradients(t, got).items():
        assert gradient.dtype == torch.float32
        torch.testing.assert_close(gradient.double(), expected[name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gated", [False, True])
def test_autocast_decides_the_products_and_nothing_else(gated: bool) -> None:
    t = tensors(300, gated=gated, bias=True, dtype=torch.float32)
    t["x"] = t["x"].detach().half()
    wanted = pool(t, rows=64)
    expected = gradients(t, wanted)
    with torch.autocast("cpu", torch.bfloat16):
        got = pool(t, rows=64)
        with torch.no_grad():
            torch.testing.assert_close(pool(t, rows=64), got, rtol=2e-2, atol=2e-2)
    assert {tensor.dtype for tensor in got} == {torch.float32}
    torch.testing.assert_close(got[1].sum(dim=1), torch.ones(K))
    assert not torch.equal(got[0], wanted[0])
    torch.testing.assert_close(got, wanted, rtol=5e-2, atol=2e-2)
    for name, gradient in gradients(t, got).items():
        assert gradient.dtype == torch.float32
        # bfloat16 has three digits; what matters to the optimizer is the direction. A score's bias has no gradient.
        if name == "s":
            assert gradient.abs().max() < 1e-2
        else:
            assert torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.99, name


def test_autocast_leaves_float64_alone() -> None:
    t = tensors(30, gated=True, bias=True)
    with torch.autocast("cpu", torch.bfloat16):
        got = pool(t)
    assert_same(t, got, literal(t))


def test_the_same_seed_gives_the_same_bits() -> None:
    def run() -> list[Tensor]:
        t = tensors(100, gated=True, bias=True, dtype=torch.float32)
        torch.manual_seed(8)
        outputs = pool(t, dropout=0.25, gate_dropout=0.25, rows=16)
        return [*outputs, *gradients(t, outputs).values()]

    assert all(torch.equal(one, other) for one, other in zip(run(), run(), strict=True))


class Largest(TorchDispatchMode):
    """Remembers the most bytes of any tensor but ``given`` that an operation made."""

    def __init__(self, given: Tensor) -> None:
        super().__init__()
        self.given = given.untyped_storage().data_ptr()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else [out]:
            if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() != self.given:
                self.bytes = max(self.bytes, tensor.untyped_storage().nbytes())
        return out


def test_features_are_never_copied_whole_and_without_gradients_nothing_large_is_made() -> None:
    n = 2000
    t = tensors(n, gated=True, bias=True, dtype=torch.float32)
    wide_ND = torch.randn(n, 64).half()
    t |= {"x": wide_ND, "W": torch.randn(L, 64, requires_grad=True)}
    with Largest(wide_ND) as seen:
        pooled_KL, attention_KN = pool(t, dropout=0.25, rows=100)
        (pooled_KL.sum() + attention_KN.square().sum()).backward()
    assert seen.bytes == n * 2 * A * 4  # the gate
    with torch.no_grad(), Largest(wide_ND) as seen:
        pool(t, dropout=0.25, rows=100)
    assert seen.bytes < n * L * 4


def test_a_large_slide() -> None:
    """Large enough for the arrays in huge pages."""
    t = tensors(70_000, gated=True, bias=True)
    got = pool(t)
    with torch.no_grad():
        torch.testing.assert_close(pool(t), got, rtol=1e-9, atol=1e-12)
    assert_same(t, got, literal(t))
