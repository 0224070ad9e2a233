"""How much memory fine-tuning may use at this hospital, and the plan within it, the same whenever the agent is started.

What is free on a computer without a GPU differs from one moment to the next. So the budget of a stage is written down
when it is first asked for; it is asked for again only where site.toml has changed.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fedpath.core.config.model import ModelSection
from fedpath.core.config.site import ComputeSection
from fedpath.core.config.stages import TuningSection
from fedpath.core.files import write_json
from fedpath.core.training.precision import Chosen
from fedpath.core.tuning.budget import budget_of, within_budget
from fedpath.core.tuning.choice import MemoryChoice
from fedpath.core.tuning.plan import Plan, plan_memory

T = TypeVar("T")
BUDGET_FILE = "memory.json"


@dataclasses.dataclass(frozen=True, slots=True)
class Task:
    """What is to be trained, and on what."""

    encoder: str
    head: ModelSection
    tuning: TuningSection
    n_classes: int
    patch_px: int
    device: str
    precision: Chosen
    drift_copies: int = 0
    """Copies of what trains that FedProx and SCAFFOLD hold."""


class Memory:
    """The memory plan of a stage.

    Args:
        folder: of the stage.
        task: what is to be trained.
        compute: `[compute]` of site.toml.
        tightened: told a plan that falls short was tightened, and to what.

    Raises:
        ConfigError: no plan fits; it says the smallest budget that would do.
    """

    def __init__(self, folder: Path, task: Task, compute: ComputeSection, tightened: Callable[[Plan], None]) -> None:
        self._path, self._device, self._tell = folder / BUDGET_FILE, task.device, tightened
        asked: dict[str, Any] = {"vram_gb": compute.vram_gb, "device": task.device, "engine": compute.engine}
        self._noted = self._read(asked) or asked | {"budget_bytes": budget_of(compute, task.device), "tightened": 0}
        self.plan = plan_memory(
            task.encoder,
            task.head,
            task.tuning,
            n_classes=task.n_classes,
            patch_px=task.patch_px,
            budget_bytes=self._noted["budget_bytes"],
            device=task.device,
            precision=task.precision,
            engine=compute.engine,
            # Patches are chosen before an order says how many bags a step learns from: room for more than one.
            accumulate_bags=2,
            drift_copies=task.drift_copies,
        )
        for _ in range(self._noted["tightened"]):
            self.plan = self.plan.tighter() or self.plan
        write_json(self._path, self._noted)

    def within(self, attempt: Callable[[MemoryChoice], T]) -> T:
        """Return what ``attempt`` returns under the plan; one that falls short is tightened once, and stays so.

        Raises:
            ConfigError: memory runs out all the same.
        """
        return within_budget(attempt, self.plan, device=self._device, tightened=self._tighten)

    def _tighten(self, plan: Plan) -> None:
        self.plan = plan
        self._noted["tightened"] += 1
        write_json(self._path, self._noted)
        self._tell(plan)

    def _read(self, asked: dict[str, Any]) -> dict[str, Any] | None:
        """Return what was noted for the same settings."""
        try:
            noted = json.loads(self._path.read_text())
        except (OSError, ValueError):
            return None
        kept = {"budget_bytes", "tightened"}
        if not isinstance(noted, dict) or noted.keys() != asked.keys() | kept:
            return None
        return noted if {key: noted[key] for key in asked} == asked else None
