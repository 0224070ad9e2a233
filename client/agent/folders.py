"""Where the stages of a run keep what they made at this hospital.

Everything a later stage needs is found again from the order's facts alone: an agent that was killed needs no memory.
"""

from dataclasses import dataclass
from pathlib import Path

from fedpath.core.config import SiteConfig
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.messages import RunFacts

FINAL_MODEL = "federated.safetensors"
"""What select and train end with."""
ENCODER, HEAD = "encoder.safetensors", "head.safetensors"
"""What fine-tune ends with."""
PATCHES = "patches"
"""Pixels of the selected patches, while fine-tune lasts."""
FEATURES = "features"
"""What encode makes."""


@dataclass(frozen=True, slots=True)
class StageFolders:
    """Folders of the stage that an order is of, and of those before that it stands on."""

    config: SiteConfig
    facts: RunFacts

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return self.config.state / self.facts.run

    @property
    def own(self) -> Path:
        """Folder of the stage; the run's own without a pipeline."""
        return self.run if self.facts.stage is None else self.run / self.facts.stage.name

    @property
    def features(self) -> Path:
        """Folder of the features that the stage uses: those of site.toml, unless an earlier stage encoded anew."""
        stage = self.facts.stage
        if stage is None or stage.encoded is None:
            return self.config.data.features
        return self.run / stage.encoded / FEATURES

    def selector(self) -> Path:
        """Return the selector that ranks the patches of a fine-tune stage.

        Raises:
            RefusedError: this hospital has none.
        """
        return self._of_earlier(None if self.facts.stage is None else self.facts.stage.selector, FINAL_MODEL)

    def tuned_encoder(self) -> Path:
        """Return the encoder that an encode stage encodes with.

        Raises:
            RefusedError: this hospital has none.
        """
        return self._of_earlier(None if self.facts.stage is None else self.facts.stage.tuned, ENCODER)

    def check_features(self) -> None:
        """Check that the stage whose features are used has been carried out here.

        Raises:
            RefusedError: it has not.
        """
        stage = self.facts.stage
        if stage is not None and stage.encoded is not None and not self.features.is_dir():
            raise self._not_here(stage.encoded)

    def _of_earlier(self, name: str | None, file: str) -> Path:
        if name is None:
            raise RefusedError(
                "the order does not say on which earlier stage it stands",
                remedy="run the same version of fedpath on both sides",
            )
        path = self.run / name / file
        if not path.is_file():
            raise self._not_here(name)
        return path

    def _not_here(self, name: str) -> RefusedError:
        return RefusedError(
            f"site {self.config.site.name} has nothing of stage '{name}': it did not take part in it to its end",
            remedy="keep the state folder of site.toml during a run; a site that was away joins the next run",
        )
