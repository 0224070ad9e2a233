"""FlexAttention's form against the blocks that everything else runs on; on a GPU also compiled and backward."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from literal_spatial import LAYOUTS, assert_near, random_qkv, squared_distances, tissue_cells
from torch import Tensor

from fedpath.core.bags import Bag
from fedpath.core.models import build_model
from fedpath.core.models.spatial import WindowLayout, Windows, alibi_slopes, flex, global_attention, local_attention

# On a CPU it runs uncompiled, as it says itself.
pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: FlexAttention's kernels")

HEADS, D = 3, 24


@pytest.fixture(autouse=True)
def _forget_compilations() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def without_gradients(qkv: list[Tensor]) -> list[Tensor]:
    return [tensor.detach() for tensor in qkv]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_local_attention_equals_the_blocks(layout: str) -> None:
    cells_N2 = LAYOUTS[layout]()
    qkv, slopes_H = without_gradients(random_qkv(HEADS, len(cells_N2), 5)), alibi_slopes(HEADS)
    for radius in (0, 3):
        window_layout = WindowLayout(cells_N2, radius)
        got = flex.local_attention(*qkv, slopes_H, window_layout)
        assert_near([got], [local_attention(*qkv, window_layout, slopes_H)], 1e-10)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_global_attention_equals_the_strips(layout: str) -> None:
    cells_N2 = LAYOUTS[layout]()
    qkv, slopes_H = without_gradients(random_qkv(HEADS, len(cells_N2), 5)), alibi_slopes(HEADS)
    got = flex.global_attention(*qkv, slopes_H, cells_N2, cells_N2, 8, None)
    assert_near([got], [global_attention(*qkv, cells_N2, cells_N2, slopes_H, far=8)], 1e-10)


def test_global_attention_to_windows_equals_the_strips() -> None:
    cells_N2 = LAYOUTS["tissue with holes"]()
    windows, slopes_H = Windows(cells_N2, 40), alibi_slopes(HEADS)
    qkv = without_gradients(random_qkv(HEADS, len(cells_N2), D, keys=len(windows)))
    got = flex.global_attention(*qkv, slopes_H, cells_N2, windows.centres_M2, 100, windows.log_counts_M)
    expected = global_attention(
        *qkv, cells_N2, windows.centres_M2, slopes_H, far=100, log_counts_M=windows.log_counts_M
    )
    assert_near([got], [expected], 1e-10)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)])
def test_other_types_are_near_and_stay_what_they_are(dtype: torch.dtype, tolerance: float) -> None:
    cells_N2, slopes_H = LAYOUTS["tissue with holes"](), alibi_slopes(HEADS)
    qkv = without_gradients(random_qkv(HEADS, len(cells_N2), D, dtype))
    layout = WindowLayout(cells_N2, 3)
    for got, expected in (
        (flex.local_attention(*qkv, slopes_H, layout), local_attention(*qkv, layout, slopes_H)),
        (
            flex.global_attention(*qkv, slopes_H, cells_N2, cells_N2, 100, None),
            global_attention(*qkv, cells_N2, cells_N2, slopes_H, far=100),
        ),
    ):
        assert got.dtype == expected.dtype == dtype
        assert_near([got], [expected], tolerance)


def test_autocast_changes_nothing() -> None:
    cells_N2, slopes_H = LAYOUTS["tissue with holes"](), alibi_slopes(HEADS)
    qkv = without_gradients(random_qkv(HEADS, len(cells_N2), D, torch.float32))
    layout = WindowLayout(cells_N2, 3)
    expected = flex.local_attention(*qkv, slopes_H, layout)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(flex.local_attention(*qkv, slopes_H, layout), expected)


@pytest.mark.parametrize("n", [128, 129, 300, 1000])
@pytest.mark.parametrize("radius", [0, 3, 10])
def test_blocks_of_the_mask_are_those_whose_rectangles_are_near(n: int, radius: int) -> None:
    """All pairs in reach are in blocks that the mask lists, and only near rectangles are listed, each once."""
    layout = WindowLayout(tissue_cells(n), radius)
    cells_P2 = layout.cells_N2[torch.from_numpy(layout.tile_order_N)]
    cells_P2 = torch.cat([cells_P2, cells_P2[-1:].expand(-n % 128, 2)])
    mask = flex._reachable_blocks(cells_P2, radius, None)
    n_blocks = len(cells_P2) // 128
    assert mask.shape == (1, 1, len(cells_P2), len(cells_P2))
    assert mask.kv_num_blocks.dtype == mask.kv_indices.dtype == torch.int32

    rectangles = [cells_P2[start : start + 128] for start in range(0, len(cells_P2), 128)]
    wanted = {
        (i, j)
        for i, one in enumerate(rectangles)
        for j, other in enumerate(rectangles)
        if sum(
            max(0, int(one[:, a].min() - other[:, a].max()), int(other[:, a].min() - one[:, a].max())) ** 2
            for a in (0, 1)
        )
        <= radius**2
    }
    assert mask.q_num_blocks is not None
    assert mask.q_indices is not None
    for counts, indices, is_by_query in (
        (mask.kv_num_blocks, mask.kv_indices, True),
        (mask.q_num_blocks, mask.q_indices, False),
    ):
        listed = [(i, int(j)) for i in range(n_blocks) for j in indices[0, 0, i, : counts[0, 0, i]]]
        assert len(set(listed)) == len(listed)
        assert {pair if is_by_query else pair[::-1] for pair in listed} == wanted
    squared_PP = torch.tensor(squared_distances(cells_P2, cells_P2))
    in_reach = (squared_PP <= radius**2).view(n_blocks, 128, n_blocks, 128).any(dim=3).any(dim=1)
    assert {(i, j) for i, j in in_reach.nonzero().tolist()} <= wanted
    assert len(wanted) < n_blocks**2 or n < 1000


def test_one_compilation_serves_slides_of_all_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each slide brings new functions, tensors and lengths; radius and far are no constants of the kernel either."""
    compiled = []

    def backend(graph: torch.fx.GraphModule, _inputs: list[Tensor]) -> Callable[..., Any]:
        compiled.append(graph)
        return graph.forward

    kernel = flex._compiled(backend)
    monkeypatch.setattr(flex, "_kernel", lambda _device_type: kernel)
    slopes_H = alibi_slopes(HEADS)
    for n, radius in ((500, 3), (401, 3), (256, 10), (1000, 1)):
        qkv, cells_N2 = without_gradients(random_qkv(HEADS, n, D)), tissue_cells(n)
        layout = WindowLayout(cells_N2, radius)
        assert_near([flex.local_attention(*qkv, slopes_H, layout)], [local_attention(*qkv, layout, slopes_H)], 1e-10)
    assert len(compiled) == 1
    for n, far in ((500, 100), (401, 100), (256, 3)):
        qkv, cells_N2 = without_gradients(random_qkv(HEADS, n, D)), tissue_cells(n)
        got = flex.global_attention(*qkv, slopes_H, cells_N2, cells_N2, far, None)
        assert_near([got], [global_attention(*qkv, cells_N2, cells_N2, slopes_H, far=far)], 1e-10)
    assert len(compiled) == 2


def test_a_cpu_has_no_kernel() -> None:
    assert not flex.has_kernel(torch.zeros(4, 1000, 96))


def test_a_kernel_needs_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images have none: there a GPU is served by the blocks."""
    monkeypatch.setattr(flex, "find_spec", lambda name: name)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    assert not flex._compiles.__wrapped__()
    (tmp_path / "gcc").touch(0o755)
    assert flex._compiles.__wrapped__()


@needs_gpu
@pytest.mark.parametrize(("n", "d"), [(129, 96), (300, 5), (1024, 64), (3001, 96)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_forward_and_backward_equal_the_blocks(n: int, d: int, dtype: torch.dtype) -> None:
    cells_N2, slopes_H = tissue_cells(n), alibi_slopes(4)
    windows = Windows(cells_N2, 150)
    exact = random_qkv(4, n, d, dtype)
    on_gpu = [tensor.detach().cuda().requires_grad_() for tensor in exact]
    assert flex.has_kernel(on_gpu[0])

    def attend(form: str, q_HNd: Tensor, k_HNd: Tensor, v_HNd: Tensor) -> Tensor:
        if form == "local":
            return local_attention(q_HNd, k_HNd, v_HNd, WindowLayout(cells_N2, 10), slopes_H)
        if form == "exact":
            return global_attention(q_HNd, k_HNd, v_HNd, cells_N2, cells_N2, slopes_H, far=100)
        k_HMd, v_HMd = windows.mean(k_HNd), windows.mean(v_HNd)
        centres_M2, log_counts_M = windows.centres_M2, windows.log_counts_M
        return global_attention(q_HNd, k_HMd, v_HMd, cells_N2, centres_M2, slopes_H, far=100, log_counts_M=log_counts_M)

    for form in ("local", "exact", "windows"):
        got, expected = attend(form, *on_gpu), attend(form, *exact)
        assert got.dtype == dtype
        weights_HNd = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7))
        gradients = [
            torch.autograd.grad((out.float() * weights_HNd.to(out.device)).sum(), inputs)
            for out, inputs in ((got, on_gpu), (expected, exact))
        ]
        tolerance = 1e-4 if dtype == torch.float32 else 0.05
        assert_near([got.cpu(), *(g.cpu() for g in gradients[0])], [expected, *gradients[1]], tolerance)


@needs_gpu
@pytest.mark.parametrize("n", [1, 100, 2000])
@pytest.mark.parametrize("form", ["exact", "windows"])
@pytest.mark.parametrize("dropout", [0.0, 0.05])
def test_a_gpu_gives_the_model_of_a_cpu(n: int, form: str, dropout: float) -> None:
    options = {"global_form": form, "attention_dropout": dropout}
    model = build_model("longmil", width=32, n_classes=2, options=options, seed=1)
    features_ND = torch.randn(n, 32, generator=torch.Generator().manual_seed(0)).half()
    bag = Bag("slide", features_ND, 256 * tissue_cells(n), 256)
    model.train(dropout == 0)
    expected = model(bag)
    wanted = torch.autograd.grad(model.loss(expected, 1), list(model.parameters()))
    model.cuda()
    output = model(bag)
    torch.testing.assert_close(output.logits_C.cpu(), expected.logits_C, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(output.attention_KN.cpu(), expected.attention_KN, rtol=1e-3, atol=1e-6)
    for got, gradient in zip(torch.autograd.grad(model.loss(output, 1), list(model.parameters())), wanted, strict=True):
        assert (got.cpu() - gradient).norm() <= 1e-3 * gradient.norm() + 1e-5
    model.train()
    assert model.loss(model(bag), 1).isfinite()
    with torch.inference_mode(), torch.autocast("cuda", torch.bfloat16):
        assert model.eval()(bag).logits_C.isfinite().all()
