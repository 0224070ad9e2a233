"""Attention between the patches of a slide by where they lie on it.

| letter | meaning |
|---|---|
| H | heads |
| d | width of a head |
| N | patches, as queries |
| M | keys: the patches, or windows of them |
| T | blocks of neighbouring patches in one chunk, B = H · T |
| Q, K | queries and keys of one block |
"""

from fedpath.core.models.spatial.attention import alibi_slopes, global_attention, local_attention
from fedpath.core.models.spatial.layout import WindowLayout, grid_cells
from fedpath.core.models.spatial.summaries import Windows

__all__ = ["WindowLayout", "Windows", "alibi_slopes", "global_attention", "grid_cells", "local_attention"]
