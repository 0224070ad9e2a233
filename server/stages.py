"""What a stage of the pipeline makes of the federation's configuration: its settings, and the model it starts from."""

from typing import Any

from fedpath.core.config import FederationConfig
from fedpath.core.config.stages import EncodeStage, SelectStage, TrainStage, TuneStage
from fedpath.core.encoders.base import PatchEncoder
from fedpath.core.encoders.registry import build_encoder, encoder_sha256
from fedpath.core.errors import ConfigError
from fedpath.core.exchange.groups import personal_names
from fedpath.core.models.protocol import BagModel
from fedpath.core.training.alone import initial_model
from fedpath.core.tuning.build import build_tuner
from fedpath.server.aggregation import check_installed, make_ready


def check_models(config: FederationConfig, *, serving: bool = False) -> FederationConfig:
    """Return the configuration, with the hash of the encoder that is to be tuned in the feature contract.

    With it a hospital whose features are of another encoder is told before the first stage, not after it.

    Args:
        config: federation.toml.
        serving: whether a run of it is about to be served: then what combines its updates is made ready.

    Raises:
        ConfigError: a model, an option or the encoder's weights do not allow a start.
    """
    check_installed(config.aggregation)
    encoder = None
    for stage in config.stage:
        if isinstance(stage, TuneStage):
            config, encoder = _with_encoder(config, stage)
    largest = 0
    if not config.stage:
        model = initial_model(config)
        personal_names(model, config.local.personal)
        largest = _bytes_of(model)
    for stage in config.stage:
        if isinstance(stage, EncodeStage):
            continue
        try:
            model = build_model_of(config, stage, encoder)
            personal_names(model, config_of(config, stage).local.personal)
        except ConfigError as error:
            raise ConfigError(f"stage '{stage.name}': {error.message}", remedy=error.remedy) from None
        largest = max(largest, _bytes_of(model))
    if serving:
        make_ready(config.aggregation, largest)
    return config


def _bytes_of(model: BagModel) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def _with_encoder(config: FederationConfig, stage: TuneStage) -> tuple[FederationConfig, PatchEncoder]:
    """Return the configuration with the hash of the encoder, and the encoder, which takes seconds to read."""
    features = config.features
    for key in ("mpp", "patch_px"):
        if getattr(features, key) is None:
            raise ConfigError(
                f"stage '{stage.name}' reads patches from slides, and features.{key} is not stated",
                remedy=f"add '{key}' to [features] of federation.toml",
            )
    encoder = build_encoder(features.encoder, config.encoder.weights)
    found = encoder_sha256(encoder)
    where = config.encoder.weights or f"encoder '{features.encoder}'"
    if features.encoder_sha256 not in (None, found):
        raise ConfigError(
            f"{where}: its hash is {found}, federation.toml asks for {features.encoder_sha256}",
            remedy="name the right file in encoder.weights, or correct features.encoder_sha256",
        )
    if encoder.width != features.width:
        raise ConfigError(
            f"{where}: its features have width {encoder.width}, features.width is {features.width}",
            remedy="correct features.width, or features.encoder, in federation.toml",
        )
    return config.model_copy(update={"features": features.model_copy(update={"encoder_sha256": found})}), encoder


def config_of(config: FederationConfig, stage: SelectStage | TuneStage | TrainStage) -> FederationConfig:
    """Return the configuration with a stage's model and training in their places."""
    update: dict[str, Any] = {"training": stage.training.over(config.training)}
    if isinstance(stage, TuneStage):
        # What encodes the slides must be the same everywhere: its hash is part of the feature contract.
        update["local"] = config.local.model_copy(update={"personal": []})
    if stage.model is not None:
        update["model"] = stage.model
    return config.model_copy(update=update)


def build_model_of(
    config: FederationConfig, stage: SelectStage | TuneStage | TrainStage, encoder: PatchEncoder | None = None
) -> BagModel:
    """Return the model that a stage starts from, drawn from the federation's seed.

    Args:
        config: federation.toml.
        stage: of it.
        encoder: that is to be tuned, where it has been read already; it becomes part of the model.
    """
    own = config_of(config, stage)
    if not isinstance(stage, TuneStage):
        return initial_model(own)
    return build_tuner(
        encoder=encoder or build_encoder(config.features.encoder, config.encoder.weights),
        encoder_name=config.features.encoder,
        head=own.model,
        tuning=stage.tuning,
        n_classes=len(config.task.labels),
        seed=config.federation.seed,
        learning_rate=own.training.learning_rate,
    )
