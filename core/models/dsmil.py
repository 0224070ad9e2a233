"""DSMIL, dual-stream multiple instance learning.

Li et al., "Dual-stream Multiple Instance Learning Network for Whole Slide Image Classification with Self-supervised
Contrastive Learning", CVPR 2021; the projections are those of the model its authors released.

The first stream scores every instance and takes the best of each class, the critical instance. The second attends to
the instances that resemble the critical ones.

    s_NC     = x_ND W_0 + b_0                 m_c = argmax over N of s_c          instance logits_c = s_{m_c, c}
    q_NA     = tanh(W_2 relu(W_1 x))          A = 128
    a_CN     = softmax over N of q_n · q_{m_c} / sqrt(A)
    B_CD     = a v                            v = dropout(x): the released model does not project the values
    bag logits_c = Σ_{c', d} W_{c c' d} B_{c' d} + b_c
    logits   = (instance logits + bag logits) / 2
    loss     = (CE(instance logits) + CE(bag logits)) / 2

Two differences: the authors train one sigmoid a class, here a slide has one of C classes and both terms are softmax
cross-entropies; and their test code averages the streams' probabilities, here the logits are averaged, which is the
paper's formula.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from fedpath.core.bags.bag import Bag
from fedpath.core.models.inputs import BagModelOptions, input_norm
from fedpath.core.models.protocol import BagModel, BagOutput, weighted_cross_entropy
from fedpath.core.models.rows import times, weighted_sum


class DsmilOptions(BagModelOptions):
    """Options of ``dsmil``; the defaults are those of the released model."""

    attention: Annotated[int, Field(ge=1, le=8192)] = Field(default=128, description="width of the queries")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(
        default=0.0, description="dropout on the values that are pooled, in training"
    )


class Dsmil(BagModel):
    """DSMIL; see the module's docstring for the formulas.

    The output has C rows of attention, one a class, and two rows of ``branch_logits_KC``: the instance stream's and the
    bag stream's. ``slide_vector_L`` is B_CD in one row.

    Args:
        width: feature width D.
        n_classes: C.
        options: see ``DsmilOptions``.
    """

    def __init__(self, width: int, n_classes: int, options: DsmilOptions) -> None:
        super().__init__()
        self.slide_width = n_classes * width
        self.input_norm = input_norm(options.input_norm, width)
        # W_0 above W_1: one product with the features instead of two.
        self.instance_and_hidden = nn.Linear(width, n_classes + options.attention)
        self.query = nn.Linear(options.attention, options.attention)
        self.dropout = nn.Dropout(options.dropout)
        # The authors' convolution over all of D with C channels in and out is this linear map of the C · D numbers.
        self.bag_head = nn.Linear(n_classes * width, n_classes)

    def forward(self, bag: Bag) -> BagOutput:
        """Classify one bag; in training mode with dropout, if any, drawn from torch's global generator."""
        first = self.instance_and_hidden
        x_ND = self.input_norm(bag.features_ND.to(first.weight.device))
        n_classes = self.bag_head.out_features
        both_NCA = times(x_ND, first.weight, first.bias)
        instance_C, critical_C = both_NCA[:, :n_classes].max(dim=0)
        q_NA = torch.tanh(self.query(torch.relu(both_NCA[:, n_classes:])))
        attention_CN = torch.softmax(q_NA[critical_C] @ q_NA.T / q_NA.shape[1] ** 0.5, dim=1)
        if self.training and self.dropout.p > 0:
            pooled_CD = attention_CN @ self.dropout(x_ND.to(attention_CN.dtype))
        else:
            pooled_CD = weighted_sum(attention_CN, x_ND)
        slide_L = pooled_CD.flatten()
        streams_KC = torch.stack([instance_C, self.bag_head(slide_L)])
        return BagOutput(streams_KC.mean(dim=0), attention_CN, slide_L, streams_KC)

    def loss(self, output: BagOutput, target: int, class_weights_C: Tensor | None = None) -> Tensor:
        """Return the mean of the two streams' cross-entropies."""
        if output.branch_logits_KC is None:
            raise ValueError("DSMIL's loss needs the logits of both streams from DSMIL's forward")
        return weighted_cross_entropy(output.branch_logits_KC, target, class_weights_C)
