"""The messages of a run: orders from the coordinator, answers from a site.

Each is a validated header (JSON, unknown keys forbidden) and, where it carries a model, arrays named "group/parameter".
Neither side trusts the other's headers: they are parsed by these models before anything else happens.
"""

from typing import Annotated, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, TypeAdapter, ValidationError, model_validator

from fedpath.core.clinical.standard import ClinicalStatistics
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.config.federated import ExchangeSection, LocalSection
from fedpath.core.config.federation import FeaturesSection, Labels
from fedpath.core.config.loading import Section
from fedpath.core.config.model import ModelSection
from fedpath.core.config.names import FederationName, StageName
from fedpath.core.config.stages import TuningSection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.contract import FeatureContract
from fedpath.core.exchange.wire import Arrays, header_of, pack, printable, unpack

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
# Far above any federation, far below what a float32 holds: a site cannot make everybody's mean overflow.
_MOST = 10**9
Count = Annotated[int, Field(ge=0, le=_MOST)]
Share = Annotated[float, Field(ge=0, le=1)]
Seconds = Annotated[float, Field(ge=0)]


Reason = Annotated[str, Field(max_length=2000), AfterValidator(printable)]
"""One line that the other side can print: no control characters."""


Origin = Annotated[str, Field(max_length=300), AfterValidator(printable)]
"""Name and version of an installed package: ``my-package 1.2``."""


class StageFacts(Section):
    """Which stage of a pipeline an order is of, and which earlier ones it stands on."""

    name: StageName
    kind: Literal["select", "fine-tune", "encode", "train"]
    number: Annotated[int, Field(ge=1)]
    of: Annotated[int, Field(ge=1)]
    selector: StageName | None = None
    """fine-tune: the stage whose selector ranks the patches."""
    tuned: StageName | None = None
    """encode: the stage whose encoder encodes the slides."""
    encoded: StageName | None = None
    """All but encode: the stage whose features are used; None for those of site.toml."""
    tuning: TuningSection | None = None
    """fine-tune: how."""
    encoder_sha256: Sha256 | None = None
    """fine-tune: of the encoder that is tuned, before. encode: of the tuned one."""


RunName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-]{1,64}$")]
Beside = Annotated[list[RunName], Field(max_length=100)]
"""Other runs that the site takes part in while this one goes on: it may allow only so many side by side."""


class RunFacts(Section):
    """What holds for the whole run; every order carries it, so a site needs no memory of earlier ones."""

    federation: FederationName
    run: RunName
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    labels: Labels
    features: FeaturesSection
    model: ModelSection
    package: Origin | None = None
    """Where the coordinator has the model from, when it is one of another package than fedpath."""
    clinical: ClinicalSchema | None = None
    """The clinical fields; None for a model that does not read any."""
    stage: StageFacts | None = None
    """None for a run without a pipeline."""
    local: LocalSection = LocalSection()
    """How every site trains, and what of the model each keeps for itself. Scales of learning rates do not travel: a
    site's own is in the learning rate of its orders, and no other's is its business."""


class Describe(Section):
    """Ask what this site has. No model travels."""

    kind: Literal["describe"] = "describe"
    facts: RunFacts
    beside: Beside = Field(default_factory=list)


class Train(Section):
    """Evaluate the model that comes along on the validation patients, train it, send the result."""

    kind: Literal["train"] = "train"
    facts: RunFacts
    beside: Beside = Field(default_factory=list)
    round: Annotated[int, Field(ge=1)]
    rounds: Annotated[int, Field(ge=1)]
    base: Sha256
    """Hash of the model that comes along."""
    local_epochs: Annotated[int, Field(ge=1)]
    learning_rate: Annotated[float, Field(gt=0)]
    weight_decay: Annotated[float, Field(ge=0)]
    class_weights: bool
    accumulate_bags: Annotated[int, Field(ge=1)] = 1
    exchange: ExchangeSection = ExchangeSection()
    """How the update is to be written."""
    counted: Count = 0
    """Round of the last order whose update from this site counted; 0 for none. What a site carries from round to round
    (`fedpath.client.agent.memory`) is as it was after that one: an update that was refused or dropped left nothing."""
    best: Count = 0
    """The same of the best model so far: its personal layers may be asked for at the end, so they are not forgotten."""
    control: Sha256 | None = None
    """SCAFFOLD: hash of the control variate that comes along, in arrays named `CONTROL` + "group/parameter"."""

    @model_validator(mode="after")
    def _is_one_of_the_rounds(self) -> Self:
        if self.round > self.rounds:
            raise ValueError(f"round {self.round} of {self.rounds}")
        return self


class Evaluate(Section):
    """Evaluate the model that comes along."""

    kind: Literal["evaluate"] = "evaluate"
    facts: RunFacts
    round: Count
    base: Sha256
    split: Literal["validation", "test"]
    counted: Count = 0
    """Round of the last order whose update from this site counted up to ``round``; 0 for none. The site's personal
    layers are taken as they were after it."""


class Encode(Section):
    """Encode every slide of the cohort again, with the encoder that the stage ``facts.stage.tuned`` left here.

    ``facts.features`` is what the new features are to be: encoder, hash, µm/px, patch size.
    """

    kind: Literal["encode"] = "encode"
    facts: RunFacts
    beside: Beside = Field(default_factory=list)


class Finish(Section):
    """The stage is over; its best global model comes along, for the hospital to keep."""

    kind: Literal["finish"] = "finish"
    facts: RunFacts
    base: Sha256
    best_round: Count
    counted: Count = 0
    """Likewise, up to ``best_round``."""
    more: bool = False
    """Another stage follows: stay. Otherwise the run is over."""


class Refuse(Section):
    """This site cannot take part, and why."""

    kind: Literal["refuse"] = "refuse"
    facts: RunFacts
    reason: Reason


Order = Annotated[Describe | Train | Evaluate | Encode | Finish | Refuse, Field(discriminator="kind")]


class Metrics(Section):
    """Figures over one split of one site; None where they are undefined or held back by the site's policy."""

    loss: float | None = None
    auc: Share | None = None
    balanced_accuracy: Share | None = None
    macro_f1: Share | None = None
    slides: Count = 0
    patients: Count = 0


class Description(Section):
    """A site's answer to `Describe`: how its features were made, how much it has."""

    kind: Literal["description"] = "description"
    contract: FeatureContract
    patients: dict[Literal["train", "validation", "test"], Count | None]
    """By split; None where they are fewer than the site's policy lets it report."""
    slides: dict[Literal["train", "validation", "test"], Count | None]
    version: Annotated[str, Field(max_length=100)]
    max_parallel_runs: Annotated[int, Field(ge=1, le=1000)] = 1
    """Runs that it takes part in at the same time, by its policy."""
    clinical: ClinicalStatistics | None = None
    """Sums over the training patients with clinical data; None where they are fewer than the site's policy lets it
    report, where there are none, and where the order names no fields."""


class Update(Section):
    """A site's answer to `Train`; the trained arrays come along."""

    kind: Literal["update"] = "update"
    round: int
    base: Sha256
    patients: dict[str, Annotated[int, Field(le=_MOST)]]
    """Patients that trained each parameter group."""
    training_loss: float
    steps: Count = 0
    """Optimizer steps done."""
    validation: Metrics
    """Of the model that came with the order, before training."""
    seconds: Seconds


class Evaluation(Section):
    """A site's answer to `Evaluate`."""

    kind: Literal["evaluation"] = "evaluation"
    round: int
    base: Sha256
    metrics: Metrics


class Encoded(Section):
    """A site's answer to `Encode`."""

    kind: Literal["encoded"] = "encoded"
    contract: FeatureContract
    slides: Count
    """Slides of the cohort that have new features: all of them, or the site refuses."""
    seconds: Seconds


class Receipt(Section):
    """A site's answer to `Finish` and `Refuse`."""

    kind: Literal["receipt"] = "receipt"
    stays: bool = False
    """Whether it stays connected, for later runs."""


class Refusal(Section):
    """A site's answer when it will not or cannot do as ordered. It names no path, slide or patient."""

    kind: Literal["refusal"] = "refusal"
    reason: Reason


Answer = Annotated[Description | Update | Evaluation | Encoded | Receipt | Refusal, Field(discriminator="kind")]

_ORDER: TypeAdapter[Order] = TypeAdapter(Order)
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Answer)
H = TypeVar("H")


def encode(header: Order | Answer, arrays: Arrays | None = None) -> bytes:
    """Return a message as bytes, the metadata of its arrays among them."""
    return pack(header.model_dump_json(), arrays)


def decode_order(content: bytes) -> tuple[Order, Arrays]:
    """Parse a message from the coordinator.

    Raises:
        RefusedError: it is not one of the orders above, or a value in it is not allowed.
    """
    text, arrays = unpack(content)
    return _validated(_ORDER, text), arrays


def decode_answer(content: bytes) -> tuple[Answer, Arrays]:
    """Parse a message from a site whose arrays, if it has any, are of types that numpy knows.

    Raises:
        RefusedError: it is not one of the answers above, or a value in it is not allowed.
    """
    text, arrays = unpack(content)
    return _validated(_ANSWER, text), arrays


def answer_in(content: bytes) -> Answer:
    """Parse a message from a site, but for its arrays: see `fedpath.core.exchange.stored`.

    Raises:
        RefusedError: it is not one of the answers above, or a value in it is not allowed.
    """
    return _validated(_ANSWER, header_of(content))


def _validated(adapter: TypeAdapter[H], text: str) -> H:
    try:
        return adapter.validate_json(text)
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        # Names on the way to the fault may be the other side's own.
        where = printable(".".join(str(part)[:100] for part in fault["loc"])) or "header"
        raise RefusedError(
            f"message header: {where}: {fault['msg']}", remedy="run the same version of fedpath on both sides"
        ) from None
