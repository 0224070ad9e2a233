"""The feature contract: what every site's features must have in common before round 0.

Results of slide models fall by ten points when resolution, encoder or patch size silently differ between sites, so a
mismatch keeps a site out, with a reason that both sides can read.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Annotated

from pydantic import AfterValidator, Field

from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.loading import Section
from fedpath.core.exchange.wire import printable

Text = Annotated[str, Field(max_length=1000), AfterValidator(printable)]


class FeatureContract(Section):
    """How a site's features were made, as stated in its feature files."""

    encoder: Text
    encoder_sha256: Text
    width: Annotated[int, Field(ge=1)]
    mpp: float | None
    """Resolution of the patches in µm/px; None for bags that do not come from slides."""
    patch_px: int | None
    transform: Text


def differences(expected: FeaturesSection, stated: FeatureContract) -> list[str]:
    """Return, in words, where ``stated`` departs from the federation's ``expected`` features; empty when it fits."""
    pairs: list[tuple[str, object, object]] = [
        ("encoder", expected.encoder, stated.encoder),
        ("width", expected.width, stated.width),
        ("mpp", expected.mpp, stated.mpp),
        ("patch_px", expected.patch_px, stated.patch_px),
    ]
    if expected.encoder_sha256 is not None:
        pairs.append(("encoder_sha256", expected.encoder_sha256, stated.encoder_sha256))
    return [f"{key} is {ours!r}, the federation asks for {wanted!r}" for key, wanted, ours in pairs if wanted != ours]


def disagreements(stated: Mapping[str, FeatureContract]) -> dict[str, str]:
    """Return the sites whose encoder weights or transform differ from most sites', each with the reason.

    Among equally common values that of the site first in alphabetical order stands.
    """
    marks = {site: (stated[site].encoder_sha256, stated[site].transform) for site in sorted(stated)}
    if not marks:
        return {}
    (sha256, transform), _ = Counter(marks.values()).most_common(1)[0]
    return {
        site: f"encoder weights {mark[0][:12]}… with transform {mark[1]!r}; "
        f"most sites have {sha256[:12]}… with {transform!r}"
        for site, mark in marks.items()
        if mark != (sha256, transform)
    }
