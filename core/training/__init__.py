"""The local loop, its metrics, and training without a federation. Shape letters: see ``fedpath.core.models``."""

from fedpath.core.training.alone import AloneResult, Validated, train_alone
from fedpath.core.training.evaluation import Metrics, evaluate, predict
from fedpath.core.training.loop import TrainResult, TrainSettings, class_weights, learning_rate_at, train
from fedpath.core.training.metrics import Interval, auc, balanced_accuracy, bootstrap_auc, macro_f1

__all__ = [
    "AloneResult",
    "Interval",
    "Metrics",
    "TrainResult",
    "TrainSettings",
    "Validated",
    "auc",
    "balanced_accuracy",
    "bootstrap_auc",
    "class_weights",
    "evaluate",
    "learning_rate_at",
    "macro_f1",
    "predict",
    "train",
    "train_alone",
]
