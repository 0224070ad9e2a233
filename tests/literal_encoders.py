"""Encoders as their papers define them, in numpy and float64, one patch at a time; slow and easy to check.

Weights are read by the names that torchvision and timm publish. Shapes: C channels, H × W pixels, T tokens, D features.
"""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
State = Mapping[str, Array]

MEAN = np.array([0.485, 0.456, 0.406])[:, None, None]
SD = np.array([0.229, 0.224, 0.225])[:, None, None]


def convolve(image_CHW: Array, kernel: Array, stride: int, padding: int) -> Array:
    """Return the correlation of an image with each kernel (out, in, size, size)."""
    size = kernel.shape[2]
    padded = np.pad(image_CHW, ((0, 0), (padding, padding), (padding, padding)))
    rows = (padded.shape[1] - size) // stride + 1
    columns = (padded.shape[2] - size) // stride + 1
    out = np.empty((len(kernel), rows, columns))
    for row in range(rows):
        for column in range(columns):
            window = padded[:, row * stride : row * stride + size, column * stride : column * stride + size]
            out[:, row, column] = (kernel * window).sum(axis=(1, 2, 3))
    return out


def batch_norm(image_CHW: Array, state: State, name: str) -> Array:
    """Return channels standardised by stored statistics, then scaled and moved."""
    out = np.empty_like(image_CHW)
    for channel in range(len(image_CHW)):
        mean, variance = state[f"{name}.running_mean"][channel], state[f"{name}.running_var"][channel]
        standard = (image_CHW[channel] - mean) / math.sqrt(variance + 1e-5)
        out[channel] = standard * state[f"{name}.weight"][channel] + state[f"{name}.bias"][channel]
    return out


def bottleneck(image_CHW: Array, state: State, name: str, stride: int) -> Array:
    """Return a residual block: 1×1, 3×3 (with the stride), 1×1, beside a shortcut."""
    inner = np.maximum(batch_norm(convolve(image_CHW, state[f"{name}.conv1.weight"], 1, 0), state, f"{name}.bn1"), 0)
    inner = np.maximum(batch_norm(convolve(inner, state[f"{name}.conv2.weight"], stride, 1), state, f"{name}.bn2"), 0)
    inner = batch_norm(convolve(inner, state[f"{name}.conv3.weight"], 1, 0), state, f"{name}.bn3")
    shortcut = image_CHW
    if f"{name}.downsample.0.weight" in state:
        shortcut = convolve(image_CHW, state[f"{name}.downsample.0.weight"], stride, 0)
        shortcut = batch_norm(shortcut, state, f"{name}.downsample.1")
    return np.maximum(inner + shortcut, 0)


def resnet(rgb_CHW: Array, state: State, blocks: tuple[int, ...]) -> Array:
    """Return the features of one patch with colours in 0…1."""
    image = batch_norm(convolve((rgb_CHW - MEAN) / SD, state["conv1.weight"], 2, 3), state, "bn1")
    image = np.pad(np.maximum(image, 0), ((0, 0), (1, 1), (1, 1)))
    half = (image.shape[1] - 3) // 2 + 1
    pooled = np.empty((len(image), half, half))
    for row in range(half):
        for column in range(half):
            pooled[:, row, column] = image[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].max(axis=(1, 2))
    image = pooled
    for layer, count in enumerate(blocks, start=1):
        for block in range(count):
            stride = 2 if layer > 1 and block == 0 else 1
            image = bottleneck(image, state, f"layer{layer}.{block}", stride)
    return image.mean(axis=(1, 2))


def linear(vector_D: Array, state: State, name: str) -> Array:
    """Return W x + b, and with an adapter also scale · up (down x)."""
    out = state[f"{name}.weight"] @ vector_D + state[f"{name}.bias"]
    if f"{name}.lora_up" in state:
        out = out + state[f"{name}.lora_scale"] * (state[f"{name}.lora_up"] @ (state[f"{name}.lora_down"] @ vector_D))
    return out


def layer_norm(vector_D: Array, state: State, name: str) -> Array:
    """Return a vector standardised by its own mean and spread, then scaled and moved."""
    standard = (vector_D - vector_D.mean()) / math.sqrt(vector_D.var() + 1e-6)
    return standard * state[f"{name}.weight"] + state[f"{name}.bias"]


def gelu(x: float) -> float:
    """Return x · Φ(x)."""
    return x * (1 + math.erf(x / math.sqrt(2))) / 2


def attention(tokens_TD: Array, state: State, name: str, heads: int) -> Array:
    """Return each token's mixture of all tokens' values, head by head, projected."""
    width = tokens_TD.shape[1]
    each = width // heads
    joined = np.stack([linear(token, state, f"{name}.qkv") for token in tokens_TD])
    mixed = np.empty_like(tokens_TD)
    for head in range(heads):
        query, key, value = (joined[:, part * width + head * each :][:, :each] for part in range(3))
        for token in range(len(tokens_TD)):
            scores = np.array([query[token] @ other / math.sqrt(each) for other in key])
            weights = np.exp(scores - scores.max())
            mixed[token, head * each : (head + 1) * each] = (weights / weights.sum()) @ value
    return np.stack([linear(token, state, f"{name}.proj") for token in mixed])


def vit(rgb_CHW: Array, state: State, *, depth: int, heads: int, square: int = 16) -> Array:
    """Return the features of one patch with colours in 0…1: the class token after the last norm."""
    image = (rgb_CHW - MEAN) / SD
    tokens = [state["cls_token"][0, 0]]
    for row in range(0, image.shape[1], square):
        for column in range(0, image.shape[2], square):
            part = image[:, row : row + square, column : column + square]
            weight = state["patch_embed.proj.weight"]
            tokens.append((weight * part).sum(axis=(1, 2, 3)) + state["patch_embed.proj.bias"])
    tokens_TD = np.stack(tokens) + state["pos_embed"][0]
    for block in range(depth):
        name = f"blocks.{block}"
        normed = np.stack([layer_norm(token, state, f"{name}.norm1") for token in tokens_TD])
        tokens_TD = tokens_TD + state.get(f"{name}.ls1.gamma", 1.0) * attention(normed, state, f"{name}.attn", heads)
        for index, token in enumerate(tokens_TD):
            inner = linear(layer_norm(token, state, f"{name}.norm2"), state, f"{name}.mlp.fc1")
            inner = np.array([gelu(x) for x in inner])
            tokens_TD[index] = token + state.get(f"{name}.ls2.gamma", 1.0) * linear(inner, state, f"{name}.mlp.fc2")
    return layer_norm(tokens_TD[0], state, "norm")
