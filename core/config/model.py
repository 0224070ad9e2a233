"""`[model]` of federation.toml."""

from typing import Any

from pydantic import Field

from fedpath.core.config.loading import Section


class ModelSection(Section):
    """The bag model, by its name in the registry (`fedpath models list`)."""

    name: str = "acmil"
    options: dict[str, Any] = Field(default_factory=dict)
