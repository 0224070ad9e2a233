"""Nyström attention against explicit matrices in float64, and what must hold of any softmax attention."""

import math

import pytest
import torch
from literal_nystrom import literal_nystrom
from torch import Tensor

from fedpath.core.models.nystrom import NystromAttention, pseudo_inverse, segment_means

INNER, HEADS, LANDMARKS = 6, 2, 4


def make_attention(landmarks: int = LANDMARKS, dropout: float = 0.0) -> NystromAttention:
    torch.manual_seed(1)
    return NystromAttention(INNER, HEADS, landmarks, dropout).double()


def make_tokens(n_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(n_tokens)
    return torch.randn(n_tokens, INNER, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("n_tokens", [1, 2, 4, 5, 7, 8, 9, 23, 40])
def test_equals_the_literal_definition_per_token(n_tokens: int) -> None:
    attention, x_TL = make_attention(), make_tokens(n_tokens).requires_grad_()
    weight_TL = make_tokens(n_tokens + 100)[:n_tokens]
    got_TL = attention(x_TL)
    expected_TL = literal_nystrom(dict(attention.named_parameters()), x_TL, HEADS, LANDMARKS)
    torch.testing.assert_close(got_TL, expected_TL, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(attention.first_token(x_TL), expected_TL[:1], rtol=1e-9, atol=1e-11)

    wanted = [x_TL, *attention.parameters()]
    got = torch.autograd.grad((got_TL * weight_TL).sum(), wanted)
    expected = torch.autograd.grad((expected_TL * weight_TL).sum(), wanted)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_is_softmax_attention_where_landmarks_suffice() -> None:
    x_TL = make_tokens(9)
    few, enough, plenty = (make_attention(landmarks)(x_TL) for landmarks in (4, 9, 500))
    assert torch.equal(enough, plenty)
    assert not torch.allclose(few, enough, rtol=1e-3)


def test_equal_tokens_attend_to_their_common_value() -> None:
    attention = make_attention()
    x_TL = make_tokens(1).expand(50, INNER)
    with torch.no_grad():
        attention.residual_HR.zero_()
    torch.testing.assert_close(attention(x_TL), attention.out(attention.value(x_TL)))


def test_segments_are_counted_from_the_end_and_hold_every_token_once() -> None:
    x_T1 = torch.arange(11.0)[:, None]
    assert segment_means(x_T1, 4)[:, 0].tolist() == [0.5, 3, 6, 9]  # 0-1, 2-4, 5-7, 8-10: the first is shorter
    assert segment_means(x_T1, 6)[:, 0].tolist() == [0, 1.5, 3.5, 5.5, 7.5, 9.5]
    assert segment_means(x_T1, 8)[:, 0].tolist() == [0, 1.5, 3.5, 5.5, 7.5, 9.5]  # two segments would be empty
    assert segment_means(x_T1, 1)[:, 0].tolist() == [5]
    assert segment_means(x_T1, 11)[:, 0].tolist() == list(range(11))
    for n_tokens in range(1, 60):
        for n_segments in range(1, 20):
            assert 1 <= len(segment_means(torch.ones(n_tokens, 1), n_segments)) <= n_segments


def test_pseudo_inverse_tends_to_moore_and_penroses() -> None:
    generator = torch.Generator().manual_seed(0)
    full_HMM = torch.softmax(3 * torch.randn(3, 7, 7, generator=generator, dtype=torch.float64), dim=-1)
    deficient_HMM = torch.softmax(torch.randn(3, 7, 1, dtype=torch.float64) * torch.ones(7), dim=-1)  # rank 1
    for matrix_HMM in (full_HMM, deficient_HMM):
        expected = torch.linalg.pinv(matrix_HMM, rtol=1e-10)
        torch.testing.assert_close(pseudo_inverse(matrix_HMM, 40), expected, rtol=1e-6, atol=1e-6)


def test_first_token_scores_are_those_of_softmax_attention() -> None:
    attention, x_TL = make_attention(), make_tokens(13)
    depth = INNER // HEADS
    scores_HT = attention.first_token_scores(x_TL)
    for head in range(HEADS):
        rows = slice(head * depth, (head + 1) * depth)
        query = attention.query.weight[rows] @ x_TL[0]
        expected = [query.dot(attention.key.weight[rows] @ x) / math.sqrt(depth) for x in x_TL]
        torch.testing.assert_close(scores_HT[head], torch.stack(expected))


def test_half_precision_does_not_reach_the_pseudo_inverse() -> None:
    attention = make_attention().float()
    x_TL = make_tokens(40).float()
    with torch.autocast("cpu", torch.bfloat16):
        half_TL = attention(x_TL)
    torch.testing.assert_close(half_TL.float(), attention(x_TL), rtol=0.1, atol=0.03)


def test_dropout_acts_in_training_alone() -> None:
    attention, x_TL = make_attention(dropout=0.5), make_tokens(40)
    dropped_TL = attention.train()(x_TL)
    whole_TL = attention.eval()(x_TL)
    zeros_TL = dropped_TL == 0
    assert 0.3 < zeros_TL.double().mean() < 0.7
    torch.testing.assert_close(dropped_TL[~zeros_TL], 2 * whole_TL[~zeros_TL])
