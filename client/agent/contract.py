"""What this hospital's feature files say about how they were made: its side of the feature contract."""

from collections.abc import Sequence
from pathlib import Path

from fedpath.core.bags.store import is_own, read_bag, read_meta
from fedpath.core.config.site import FeaturesSection
from fedpath.core.errors import DataError
from fedpath.core.exchange.contract import FeatureContract


def contract_of(paths: Sequence[Path], stated: FeaturesSection | None) -> FeatureContract:
    """Return how the features were made; all files must agree.

    Args:
        paths: the feature files of the cohort, at least one.
        stated: `[features]` of site.toml, which speaks for files of other tools; fedpath's own speak for themselves.

    Raises:
        DataError: a file is missing or broken, does not say how it was made, or was made differently from the first.
    """
    # The width of every file is checked when its bag is loaded; here it is that of the first.
    width = int(read_bag(paths[0]).features_ND.shape[1])
    first = _contract(paths[0], width, stated)
    for path in paths[1:]:
        contract = _contract(path, width, stated)
        if contract != first:
            odd = [key for key, value in contract.model_dump().items() if value != getattr(first, key)]
            raise DataError(
                f"{path}: made with another {', '.join(odd)} than {paths[0].name}",
                remedy="encode all slides of the manifest with the same settings (`fedpath slides encode`)",
            )
    return first


def _contract(path: Path, width: int, stated: FeaturesSection | None) -> FeatureContract:
    if is_own(path):
        meta = read_meta(path)
        return FeatureContract(
            encoder=meta.encoder,
            encoder_sha256=meta.encoder_sha256,
            width=width,
            mpp=meta.mpp,
            patch_px=meta.patch_px,
            transform=meta.transform,
        )
    if stated is None:
        raise DataError(
            f"{path}: does not say how it was made (not a fedpath feature file)",
            remedy="say it in [features] of site.toml, or encode the slide with `fedpath slides encode`",
        )
    return FeatureContract(width=width, **stated.model_dump())
