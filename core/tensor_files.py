"""Tensors as one safetensors file, the same bytes for the same content."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from fedpath.core.files import write_bytes


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write tensors and metadata, whole or not at all; the same content gives the same bytes."""
    # Copies: safetensors stores no tensor twice, and a model may use one under two names.
    copies = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()
    }
    write_bytes(path, _canonical(save(copies, dict(metadata))))


def _canonical(content: bytes) -> bytes:
    """Sort the header's keys: safetensors writes metadata in a random order, which would give one model many hashes."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.dumps(json.loads(content[8 : 8 + length]), sort_keys=True, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # the tensors stay aligned to 8 bytes
    return struct.pack("<Q", len(header)) + header + content[8 + length :]
