"""How a federation learns: three choices that compose freely, and what travels.

`[local]` says how a site trains in a round, `[aggregation]` how the updates combine, `[optimizer]` how the coordinator
steps with what came out; `[exchange]` says how arrays are written on the wire, `[asynchronous]` replaces rounds by
buffers.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from fedpath.core.config.loading import Section
from fedpath.core.config.names import SiteName

Combine = Literal["mean", "median", "trimmed-mean", "geometric-median", "krum", "multi-krum", "bulyan"]
ServerOptimizer = Literal["fedavg", "fedavgm", "fedadam", "fedyogi", "fedadagrad"]
Encoding = Literal["float32", "float16", "bfloat16", "int8"]


def _no_name_twice(names: list[str]) -> list[str]:
    if len(set(names)) != len(names):
        raise ValueError("a name is listed twice")
    return names


class LocalSection(Section):
    """`[local]`: how a site trains in a round."""

    method: Literal["plain", "fedprox", "scaffold"] = "plain"
    proximal: Annotated[float, Field(gt=0)] = 0.01
    """μ of FedProx: the loss grows by μ/2 · ‖w − w_global‖². Only `method = "fedprox"` reads it."""
    personal: Annotated[list[Annotated[str, Field(min_length=1)]], AfterValidator(_no_name_twice)] = Field(
        default_factory=list
    )
    """Parameter groups that each site keeps for itself; "norm" stands for all normalisation layers (FedBN)."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps of every site in a round, whatever its size; `training.local_epochs` where it is absent."""
    learning_rate_scale: dict[SiteName, Annotated[float, Field(gt=0)]] = Field(default_factory=dict)
    """Factor on the learning rate, by site; 1 for those that are not named."""


class AggregationSection(Section):
    """`[aggregation]`: what an update must satisfy before it counts, and how those that count become one."""

    combine: Combine = "mean"
    byzantine: Annotated[int, Field(ge=0)] = 1
    """f: how many sites may lie; trimmed mean, Krum, Multi-Krum and Bulyan read it."""
    keep: Annotated[int, Field(ge=1)] | None = None
    """Multi-Krum: how many updates are averaged; sites − f by default."""
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    """A longer change is shortened to this Euclidean norm before it counts; none is by default."""
    max_update_norm: Annotated[float, Field(gt=0)] | None = None
    """Largest allowed Euclidean norm of an update's change; a longer one is refused. No limit by default."""
    order: Literal["sites", "arrival"] = "sites"
    """In which order the mean adds: "sites" gives the same bits whatever comes first, "arrival" waits for nobody."""
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    """Of the cluster, for `engine = "ray"`; one on this machine where it is absent."""
    ray_workers: Annotated[int, Field(ge=1)] | None = None
    """Actors that share the parameter space; one a CPU of the cluster, at most 8, by default."""

    @property
    def updates_needed(self) -> int:
        """Updates without which the estimator says nothing: more than those f that may lie can outweigh."""
        f = self.byzantine
        match self.combine:
            case "trimmed-mean":
                return 2 * f + 1
            case "krum" | "multi-krum":
                return 2 * f + 3
            case "bulyan":
                return 4 * f + 3
            case _:
                return 1


class OptimizerSection(Section):
    """`[optimizer]`: how the coordinator steps (Reddi et al., ICLR 2021, "Adaptive Federated Optimization")."""

    name: ServerOptimizer = "fedavg"
    learning_rate: Annotated[float, Field(gt=0)] | None = None
    """η of the server; 1 for fedavg and fedavgm, 0.1 for fedadagrad, 0.01 for fedadam and fedyogi by default."""
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """β of fedavgm, β₁ of fedadam and fedyogi."""
    second_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """β₂ of fedadam and fedyogi."""
    adaptivity: Annotated[float, Field(gt=0)] = 1e-3
    """τ of the adaptive ones."""


class ExchangeSection(Section):
    """`[exchange]`: how the sites' updates are written on the wire. The global model always travels in float32."""

    encoding: Encoding = "float32"
    changes_only: bool = False
    """Send the change against the global model that came, instead of the new weights."""


class AsynchronousSection(Section):
    """`[asynchronous]`: FedBuff (Nguyen et al., AISTATS 2022). With it, a round is one buffer."""

    buffer: Annotated[int, Field(ge=1)]
    """k: updates that are applied together."""
    concurrency: Annotated[int, Field(ge=1)] | None = None
    """Sites that train at the same time; all by default."""


class LateSection(Section):
    """`[late]`: what happens to an update that comes after its round's deadline, or of an older model."""

    rule: Literal["drop", "carry"] = "drop"
    """"carry" lets it count in a later round."""
    staleness_exponent: Annotated[float, Field(ge=0)] = 0.5
    """a: an update that is τ rounds old counts (1 + τ)^−a times its patients."""
    most_rounds: Annotated[int, Field(ge=1)] = 3
    """An older one is dropped."""


class DeadlineSection(Section):
    """`[deadline]`: how long a round lasts at most. The first round has `server.round_timeout_s`."""

    factor: Annotated[float, Field(ge=1)] = 3.0
    """Of what the slowest site took, the median over the last rounds."""
    floor_s: Annotated[float, Field(gt=0)] = 120.0
    """No round has less."""
    quorum_wait_s: Annotated[float, Field(ge=0)] = 3600.0
    """A round that has too few updates waits this much longer for sites to come back, then stops with all kept."""
