"""``federation.toml``: what the coordinator runs and what every site must match."""

from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, Field, SecretStr, field_validator, model_validator

from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.config.federated import (
    AggregationSection,
    AsynchronousSection,
    DeadlineSection,
    ExchangeSection,
    LateSection,
    LocalSection,
    OptimizerSection,
)
from fedpath.core.config.loading import FilePath, Section, load_toml, parse_toml
from fedpath.core.config.model import ModelSection
from fedpath.core.config.names import Address, BindAddress, FederationName, SiteName
from fedpath.core.config.stages import Stage, check_order
from fedpath.core.config.training import TrainingSection


class FederationSection(Section):
    """Who takes part."""

    name: FederationName
    sites: Annotated[list[SiteName], Field(min_length=1)]
    """Every hospital that may join; `fedpath provision` makes a kit for each."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @field_validator("sites")
    @classmethod
    def _no_site_twice(cls, sites: list[str]) -> list[str]:
        # Kits are folders, and on some systems "a" and "A" are one.
        if len({site.casefold() for site in sites}) != len(sites):
            raise ValueError("a site is listed twice")
        return sites


class ServerSection(Section):
    """Where the coordinator listens and how long it waits."""

    address: Address
    """host:port as the hospitals reach it; also a name in the server's certificate."""
    listen: BindAddress | None = None
    """host:port to bind, when it differs from `address` (behind NAT or in a container)."""
    credentials: FilePath = Path("credentials/server")
    """Folder written by `fedpath provision`, relative to federation.toml."""
    min_sites: Annotated[int, Field(ge=1)] | None = None
    """Start, and close a round, with this many sites; all of them by default."""
    join_timeout_s: Annotated[float, Field(gt=0)] = 600.0
    grace_s: Annotated[float, Field(ge=0)] = 10.0
    """Once `min_sites` are there, wait this much longer for the others: a run starts with those it has."""
    round_timeout_s: Annotated[float, Field(gt=0)] = 3600.0
    """The longest a round lasts; rounds after the first have a deadline of their own: `[deadline]`."""
    registry: SecretStr | None = None
    """URL of the database of runs; a SQLite file in the coordinator's folder by default. It may hold a password."""
    parallel: Annotated[int, Field(ge=1)] = 1
    """Runs that `fedpath server serve` serves side by side, at most."""


def _no_label_twice(labels: list[str]) -> list[str]:
    if len(set(labels)) != len(labels):
        raise ValueError("a label is listed twice")
    return labels


Labels = Annotated[list[str], Field(min_length=2, max_length=1000), AfterValidator(_no_label_twice)]
"""The label vocabulary in class order; with two labels the second is the positive class."""


class TaskSection(Section):
    """What is predicted."""

    labels: Labels


class FeaturesSection(Section):
    """The feature contract: every site's features must be made exactly so."""

    encoder: Annotated[str, Field(min_length=1)]
    width: Annotated[int, Field(ge=1, le=65536)]
    """Length of a feature vector."""
    mpp: Annotated[float, Field(gt=0)] | None = None
    """Resolution of the patches in µm/px; absent for bags that do not come from slides."""
    patch_px: Annotated[int, Field(ge=1)] | None = None
    """Edge of a patch in pixels at `mpp`."""
    encoder_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None = None
    """Hash of the encoder's weights; without it, the sites must agree among themselves."""


class EncoderSection(Section):
    """The encoder's weights at the coordinator, for a pipeline that fine-tunes it."""

    weights: FilePath | None = None
    """File of the encoder's weights, relative to federation.toml; needed for encoders that come without."""


class FederationConfig(Section):
    """The whole of ``federation.toml``."""

    federation: FederationSection
    server: ServerSection
    task: TaskSection
    features: FeaturesSection
    clinical: ClinicalSchema | None = None
    model: ModelSection = ModelSection()
    training: TrainingSection = TrainingSection()
    encoder: EncoderSection = EncoderSection()
    local: LocalSection = LocalSection()
    aggregation: AggregationSection = AggregationSection()
    optimizer: OptimizerSection = OptimizerSection()
    exchange: ExchangeSection = ExchangeSection()
    deadline: DeadlineSection = DeadlineSection()
    late: LateSection = LateSection()
    asynchronous: AsynchronousSection | None = None
    stage: Annotated[list[Stage], AfterValidator(check_order)] = Field(default_factory=list)
    """The pipeline; a single stage of kind train when it is empty."""

    @model_validator(mode="after")
    def _quorum_is_possible(self) -> Self:
        wanted, known = self.server.min_sites, len(self.federation.sites)
        if wanted is not None and wanted > known:
            raise ValueError(f"server.min_sites is {wanted} but federation.sites names only {known}")
        return self

    @model_validator(mode="after")
    def _choices_fit(self) -> Self:
        if unknown := sorted(self.local.learning_rate_scale.keys() - set(self.federation.sites)):
            raise ValueError(f"local.learning_rate_scale names {unknown[0]}, which is not in federation.sites")
        return self

    @model_validator(mode="after")
    def _estimator_has_enough(self) -> Self:
        """A round that can end with too few updates for its estimator would leave the model as it was."""
        aggregation, least, key = self.aggregation, self.min_sites, "server.min_sites"
        if self.asynchronous is not None:
            least, key = self.asynchronous.buffer, "asynchronous.buffer"
        what = f"aggregation.combine '{aggregation.combine}' with aggregation.byzantine {aggregation.byzantine}"
        if least < (needed := aggregation.updates_needed):
            known = len(self.federation.sites)
            have = f"{key} is {least}" if known >= needed else f"federation.sites names {known}"
            raise ValueError(f"{what} needs {needed} updates a round, and {have}: lower the one or raise the other")
        most = least - aggregation.byzantine
        if aggregation.combine == "multi-krum" and (aggregation.keep or 1) > most:
            raise ValueError(
                f"aggregation.keep is {aggregation.keep}, and {what} keeps at most {most} of {key} {least}"
            )
        return self

    @property
    def min_sites(self) -> int:
        """Sites needed to start and to close a round."""
        return self.server.min_sites or len(self.federation.sites)


def load_federation(path: Path) -> FederationConfig:
    """Load ``federation.toml``; its paths become absolute.

    Raises:
        ConfigError: naming the file, the key and the remedy.
    """
    return _with_whole_paths(load_toml(path, FederationConfig), path)


def federation_of(text: str, path: Path) -> FederationConfig:
    """Read the text of a ``federation.toml`` that is in no file; its paths become absolute.

    Args:
        text: TOML.
        path: where it would be: what errors call it, and where relative paths begin.

    Raises:
        ConfigError: naming the key and the remedy.
    """
    return _with_whole_paths(parse_toml(text, path, FederationConfig), path)


def _with_whole_paths(config: FederationConfig, path: Path) -> FederationConfig:
    # Links are not followed: what replaces certificates (Kubernetes, cert-manager) moves a link to a new folder.
    credentials = (path.parent / config.server.credentials).absolute()
    server = config.server.model_copy(update={"credentials": credentials})
    encoder = config.encoder
    if encoder.weights is not None:
        encoder = encoder.model_copy(update={"weights": (path.parent / encoder.weights).resolve()})
    return config.model_copy(update={"server": server, "encoder": encoder})
