"""Build the model that a fine-tuning stage trains: the same on the coordinator's side and on every hospital's."""

from fedpath.core.config.model import ModelSection
from fedpath.core.config.stages import TuningSection
from fedpath.core.encoders.base import PatchEncoder
from fedpath.core.encoders.lora import add_adapters
from fedpath.core.encoders.registry import first_trainable_stage, trainable_names
from fedpath.core.errors import ConfigError
from fedpath.core.models.protocol import BagModel
from fedpath.core.models.registry import build_model, uses_clinical
from fedpath.core.tuning.choice import MemoryChoice
from fedpath.core.tuning.model import SparseTuner


def build_tuner(
    *,
    encoder: PatchEncoder,
    encoder_name: str,
    head: ModelSection,
    tuning: TuningSection,
    n_classes: int,
    seed: int,
    learning_rate: float,
    memory: MemoryChoice | None = None,
) -> SparseTuner:
    """Return encoder and head as one model.

    Args:
        encoder: as ``build_encoder`` gives it. It becomes part of the model, and gets its adapters here.
        encoder_name: its name in the registry.
        head: a bag model that reads no clinical data.
        tuning: what of the encoder is trained and how.
        n_classes: C.
        seed: of the head's and the adapters' first values; the same seed gives the same bits.
        learning_rate: the head's; the encoder's is relative to it.
        memory: how patches pass through the encoder; by default leanly.

    Raises:
        ConfigError: the head reads clinical data or is unknown, or the encoder can have no adapters.
    """
    model = build_head(head, encoder.width, n_classes, seed)
    if tuning.adapter == "lora":
        add_adapters(encoder, tuning.rank, tuning.alpha, seed)
    return SparseTuner(
        encoder,
        model,
        trainable=trainable_names(encoder, encoder_name, tuning),
        first_stage=first_trainable_stage(encoder, encoder_name, tuning),
        encoder_rate_scale=tuning.encoder_learning_rate / learning_rate,
        augment=tuning.augment,
        memory=memory or MemoryChoice(tuning.patches.most, micro_batch=16, recompute="upper"),
    )


def build_head(head: ModelSection, width: int, n_classes: int, seed: int) -> BagModel:
    """Return a fresh bag model for the features of an encoder in training.

    Raises:
        ConfigError: it reads clinical data, or is unknown, or one of its options is.
    """
    if uses_clinical(head.name):
        raise ConfigError(
            f"the encoder is to be fine-tuned with the head '{head.name}', which reads clinical data",
            remedy="take a model of slides alone for the fine-tune stage (clam-sb, abmil); '[model]' of a later train "
            "stage may read clinical data",
        )
    return build_model(head.name, width=width, n_classes=n_classes, options=head.options, seed=seed)


def tuned_encoder(model: SparseTuner) -> PatchEncoder:
    """Return the encoder of a tuner, to be hashed, saved or used: adapters stay beside the weights they belong to."""
    return model.encoder
