"""Where a run stands between two rounds: the global model, the best one so far, and who contributed since when.

All but the weights follows from the manifests of the rounds, so a coordinator that was killed reads it back. The best
model is on disk only: a coordinator holds one model between rounds.
"""

from dataclasses import dataclass, field

from fedpath.core.exchange.messages import Metrics
from fedpath.core.exchange.wire import Arrays
from fedpath.server.records import RoundManifest


@dataclass(frozen=True, slots=True)
class Best:
    """The trained global model with the highest validation AUC so far, then the lowest loss; the initial one before."""

    round: int = 0
    auc: float | None = None
    loss: float | None = None

    def beaten_by(self, auc: float | None, loss: float | None) -> bool:
        """Return whether a later model is to be kept instead; where no site can validate, the latest is."""
        blind = (auc, loss, self.auc, self.loss) == (None, None, None, None)
        return self.round == 0 or blind or _merit(auc, loss) > _merit(self.auc, self.loss)


@dataclass(slots=True)
class Standing:
    """What a run has come to."""

    model: Arrays
    """The global model after `round`."""
    state: Arrays = field(default_factory=dict)
    """What the coordinator's optimizer, and SCAFFOLD, carry on."""
    best: Best = Best()
    manifests: list[RoundManifest] = field(default_factory=list)
    """Of the rounds that are done."""
    counted: dict[str, list[int]] = field(default_factory=dict)
    """The rounds in which each site's update counted."""
    trained: dict[str, dict[str, int]] = field(default_factory=dict)
    """Of each parameter group, the sites that trained it, with the first round in which each did."""

    @property
    def round(self) -> int:
        """The last round that is done."""
        return len(self.manifests)

    def last_counted(self, site: str) -> int:
        """Return the round of the last order whose update from a site counted; 0 for none."""
        for manifest in reversed(self.manifests):
            part = manifest.sites.get(site)
            if part is not None and part.outcome == "answered":
                return part.of_round or manifest.round
        return 0

    def judge(self, round_: int, auc: float | None, loss: float | None) -> bool:
        """Weigh what the sites' validation says of the model of a round; return whether it is the best so far."""
        if round_ == 0 or not self.best.beaten_by(auc, loss):
            return False
        self.best = Best(round_, auc, loss)
        return True

    def advance(self, manifest: RoundManifest) -> bool:
        """Note a round that is done; return whether the model it started from is the best so far."""
        better = self.judge(manifest.round - 1, manifest.validation_auc, manifest.validation_loss)
        for site, groups in manifest.contributed().items():
            self.counted.setdefault(site, []).append(manifest.round)
            for group in groups:
                self.trained.setdefault(group, {}).setdefault(site, manifest.round)
        self.manifests.append(manifest)
        return better

    def contributions(self, round_: int) -> dict[str, list[int]]:
        """Return the sites that the model of a round is the work of, with the rounds in which each counted."""
        upto = {site: [at for at in rounds if at <= round_] for site, rounds in sorted(self.counted.items())}
        return {site: rounds for site, rounds in upto.items() if rounds}


def weighted(figures: dict[str, Metrics], key: str) -> float | None:
    """Return the mean of a figure over the sites that state it, weighted by their patients; None without any."""
    stated = [(getattr(metrics, key), metrics.patients) for metrics in figures.values()]
    stated = [(value, patients) for value, patients in stated if value is not None and patients > 0]
    total = sum(patients for _, patients in stated)
    return sum(value * patients for value, patients in stated) / total if total else None


def _merit(auc: float | None, loss: float | None) -> tuple[float, float]:
    return (-1.0 if auc is None else auc, float("-inf") if loss is None else -loss)
