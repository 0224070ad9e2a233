"""What the hospitals agree on about clinical data before round 1, and who contributed what to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fedpath.core.clinical.standard import Standard, agree, check_statistics
from fedpath.core.config.clinical import ClinicalSchema
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.messages import Description


def fault_of(description: Description, schema: ClinicalSchema | None) -> str | None:
    """Say what cannot be true of what a site describes about clinical data; None if nothing is wrong.

    Args:
        description: the site's.
        schema: the fields that were asked for; None for a model that reads none.
    """
    statistics = description.clinical
    if statistics is None:
        return None
    if schema is None:
        return "it describes clinical data, and the model reads none"
    patients = description.patients.get("train") or 0
    if statistics.patients > patients:
        return f"it describes clinical data of {statistics.patients} training patients, and has {patients}"
    if statistics.fields.keys() - schema.fields.keys():
        # Not named: what a stranger writes there is not for the operator's terminal.
        return "it describes clinical fields that the federation does not declare"
    try:
        check_statistics(schema, statistics)
    except RefusedError as error:
        return error.message
    return None


@dataclass(frozen=True, slots=True)
class Agreement:
    """The standard, from the sites that took part when the run began; later ones do not change it."""

    standard: Standard
    patients: dict[str, int] = field(default_factory=dict)
    """Training patients with clinical data, of each site that described some."""
    without: tuple[str, ...] = ()
    """Sites that described none."""
    fields: dict[str, list[str]] = field(default_factory=dict)
    """Of each field of the schema, the sites that reported it; none for a field that no site may or can report."""
    unread: tuple[str, ...] = ()
    """Number fields that models do not read: no site reported them, or all patients have the same value."""

    @classmethod
    def of(cls, schema: ClinicalSchema, accepted: Mapping[str, Description]) -> "Agreement":
        """Agree over the descriptions, which have been checked."""
        described = {site: accepted[site].clinical for site in sorted(accepted)}
        stated = {site: statistics for site, statistics in described.items() if statistics is not None}
        standard = agree(schema, stated.values())
        return cls(
            standard,
            {site: statistics.patients for site, statistics in stated.items()},
            tuple(site for site in described if site not in stated),
            {name: [site for site in stated if name in stated[site].fields] for name in schema.fields},
            standard.unread(schema),
        )

    def counted(self, description: Description) -> int:
        """Return how many of a site's patients can train the clinical groups: none without a standard."""
        if self.standard.patients == 0 or description.clinical is None:
            return 0
        return description.clinical.patients

    def in_words(self) -> str:
        """Say who trains on clinical data, for people."""
        if not self.patients:
            return "no site reports clinical data: only the single-modal branch is trained"
        says = f"clinical data of {self.standard.patients} training patients at {', '.join(self.patients)}"
        if self.without:
            says += f"; none reported by {', '.join(self.without)}"
        if len(self.unread) == len(self.fields):
            return f"{says}; no field can be read: only the single-modal branch is trained"
        read = (f"{name} from {len(sites)}" for name, sites in self.fields.items() if name not in self.unread)
        says += f"; {', '.join(read)}"
        return f"{says}; not read: {', '.join(self.unread)}" if self.unread else says

    def record(self) -> dict[str, Any]:
        """Return it for events, run.json and summary.json."""
        return {
            "says": self.in_words(),
            "patients": self.standard.patients,
            "sites": self.patients,
            "sites_without": list(self.without),
            "fields": {
                name: {
                    "sites": sites,
                    "mean": self.standard.mean.get(name),
                    "sd": self.standard.sd.get(name),
                    "shares": self.standard.shares.get(name),
                }
                for name, sites in self.fields.items()
            },
        }
