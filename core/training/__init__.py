"""The local loop, its metrics, and training without a federation. Shape letters: see ``fedpath.core.models``."""

from fedpath.core.training.alone import AloneResult, Validated, train_alone
from fedpath.core.training.bootstrap import Interval, bootstrap, bootstrap_auc
from fedpath.core.training.evaluation import Examined, Metrics, evaluate, examine, predict
from fedpath.core.training.loop import TrainResult, class_weights, train
from fedpath.core.training.metrics import auc, balanced_accuracy, brier_score, calibration_error, macro_f1
from fedpath.core.training.schedule import learning_rate_at
from fedpath.core.training.settings import TrainSettings

__all__ = [
    "AloneResult",
    "Examined",
    "Interval",
    "Metrics",
    "TrainResult",
    "TrainSettings",
    "Validated",
    "auc",
    "balanced_accuracy",
    "bootstrap",
    "bootstrap_auc",
    "brier_score",
    "calibration_error",
    "class_weights",
    "evaluate",
    "examine",
    "learning_rate_at",
    "macro_f1",
    "predict",
    "train",
    "train_alone",
]
