"""``site.toml``: a hospital's own data, compute and policy. It never leaves the hospital."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from fedpath.core.config.clinical import ClinicalSection
from fedpath.core.config.loading import FilePath, Section, load_toml
from fedpath.core.config.names import FederationName, SiteName


class SiteSection(Section):
    """Who this hospital is in the federation."""

    name: SiteName


class DataSection(Section):
    """Where the cohort lies. Paths are relative to site.toml."""

    manifest: FilePath
    """CSV with slide_id, patient_id, label and, optionally, split."""
    features: FilePath
    """Folder with one feature file a slide, `<slide_id>.h5`."""
    validation_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    test_share: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Shares of the patients, for manifests without a split column."""
    split_seed: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _something_is_left_to_train_on(self) -> Self:
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share + test_share must stay below 1")
        return self


class FeaturesSection(Section):
    """How this hospital's features were made, for files of other tools, which do not say it themselves."""

    encoder: Annotated[str, Field(min_length=1, max_length=200)]
    encoder_sha256: Annotated[str, Field(max_length=64)] = "unstated"
    """Hash of the encoder's weights, as the other sites state it."""
    mpp: Annotated[float, Field(gt=0)] | None = None
    """Resolution of the patches in µm/px."""
    patch_px: Annotated[int, Field(ge=1)] | None = None
    """Edge of a patch in pixels at `mpp`."""
    transform: Annotated[str, Field(max_length=200)] = "unstated"
    """What happened to a patch's pixels before the encoder, as the other sites state it."""


class SlidesSection(Section):
    """Where this hospital's slides lie: needed where the encoder is fine-tuned, for features alone they are not."""

    folder: FilePath
    """Searched with its subfolders. Relative to site.toml."""
    mpp: Annotated[float, Field(gt=0)] | None = None
    """µm/px of level 0, for slides that state none."""


class EncoderSection(Section):
    """The encoder's weights here, for fine-tuning."""

    weights: FilePath | None = None
    """File of the weights, relative to site.toml; needed for encoders that come without."""


class DeepSpeedSection(Section):
    """How DeepSpeed trains, where `compute.engine` asks for it."""

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 1
    """What is split among the processes: 1 optimiser states, 2 also gradients, 3 also parameters."""
    processes: Annotated[int, Field(ge=1)] | None = None
    """One a GPU of this machine by default; 1 on a CPU."""


class ComputeSection(Section):
    """What this hospital's machine may use."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the matrix products in training; "auto" takes bfloat16 where the device makes it fast."""
    threads: Annotated[int, Field(ge=1)] = 1
    vram_gb: Annotated[float, Field(gt=0)] | None = None
    """What fine-tuning may use of the GPU's memory, in GB of 10⁹ bytes; all that the card has by default."""
    engine: Literal["torch", "deepspeed"] = "torch"
    """What steps the weights; "deepspeed" needs `pip install "fedpath[deepspeed]"`."""
    deepspeed: DeepSpeedSection = DeepSpeedSection()


class PolicySection(Section):
    """What this hospital accepts from a coordinator; anything else is refused by name."""

    federations: list[FederationName] | None = None
    """Federations whose runs are accepted; any when absent."""
    models: list[str] | None = None
    """Bag models that may be trained here; any installed one when absent."""
    own_models: list[str] = Field(default_factory=list)
    """Models of other installed packages (entry points) that may run here: their code is not fedpath's."""
    max_local_epochs: Annotated[int, Field(ge=1)] = 50
    fine_tune: bool = True
    """Whether encoders may be fine-tuned here: pixels of the slides are read for it, and stay."""
    max_parallel_runs: Annotated[int, Field(ge=1)] = 1
    """Runs of the federation that this hospital takes part in at the same time; orders of further ones are refused."""
    min_patients: Annotated[int, Field(ge=1)] = 1
    """Statistics over fewer patients than this are not reported."""


class SiteConfig(Section):
    """The whole of ``site.toml``."""

    site: SiteSection
    data: DataSection
    features: FeaturesSection | None = None
    clinical: ClinicalSection | None = None
    slides: SlidesSection | None = None
    encoder: EncoderSection = EncoderSection()
    compute: ComputeSection = ComputeSection()
    policy: PolicySection = PolicySection()
    state: FilePath = Path("state")
    """Folder for the audit log and received models."""


def load_site(path: Path) -> SiteConfig:
    """Load ``site.toml``; its paths become absolute.

    Raises:
        ConfigError: naming the file, the key and the remedy.
    """
    config = load_toml(path, SiteConfig)
    folder = path.parent.resolve()
    data = config.data.model_copy(
        update={"manifest": folder / config.data.manifest, "features": folder / config.data.features}
    )
    clinical = config.clinical
    if clinical is not None:
        clinical = clinical.model_copy(update={"table": folder / clinical.table})
    slides, encoder = config.slides, config.encoder
    if slides is not None:
        slides = slides.model_copy(update={"folder": folder / slides.folder})
    if encoder.weights is not None:
        encoder = encoder.model_copy(update={"weights": folder / encoder.weights})
    return config.model_copy(
        update={
            "data": data,
            "clinical": clinical,
            "slides": slides,
            "encoder": encoder,
            "state": folder / config.state,
        }
    )
