"""What this hospital accepts: checked before anything is done; nothing from outside can switch it off."""

from collections.abc import Callable

from fedpath.core.config.site import PolicySection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.messages import Describe, Encode, Order, RunFacts, Train
from fedpath.core.models.own import GROUP, find_own
from fedpath.core.models.registry import is_built_in

CODE_CAUSES = ("model", "own_model", "not_installed", "package")
"""Why an order is refused, in one word, where it is about the code that would run: a model that may not be trained, one
of another package that may not run, is not installed, or is of another version."""
CAUSES = (*CODE_CAUSES, "federation", "fine_tune", "parallel", "epochs", "other")


def check_order(policy: PolicySection, order: Order, *, site: str, federation: str) -> None:
    """Check an order against the hospital's policy.

    `policy.models` counts for whatever is trained: in a pipeline also for the selector and the head of fine-tuning.

    Args:
        policy: `[policy]` of site.toml.
        order: what the coordinator asks.
        site: this site's name, for the message.
        federation: the federation the kit is for; orders of another one are never carried out.

    Raises:
        RefusedError: the text names no path, slide or patient, so it may be sent to the coordinator.
        ConfigError: two packages installed here name the model.
    """

    def refuse(reason: str, cause: str, remedy: str = "agree on it, then change [policy] in site.toml") -> RefusedError:
        return RefusedError(f"site {site} refuses: {reason}", remedy=remedy, cause=cause)

    facts = order.facts
    if facts.federation != federation:
        raise refuse(f"the order is of federation '{facts.federation}', the kit of '{federation}'", "federation")
    if policy.federations is not None and facts.federation not in policy.federations:
        raise refuse(f"federation '{facts.federation}' is not among those it takes part in", "federation")
    if facts.stage is not None and facts.stage.kind in _TUNING and not policy.fine_tune:
        raise refuse(
            f"stage '{facts.stage.name}' is one of fine-tuning, and no encoder may be fine-tuned here", "fine_tune"
        )
    if not isinstance(order, Encode):  # which trains nothing
        _check_model(policy, facts, refuse)
    if isinstance(order, Describe | Train | Encode):
        others = sorted(set(order.beside) - {facts.run})
        if 1 + len(others) > policy.max_parallel_runs:
            several = f"{len(others)} other runs" if len(others) > 1 else f"run {others[0]}"
            limit = f"it takes part in {policy.max_parallel_runs} at the same time (policy.max_parallel_runs)"
            raise refuse(f"run {facts.run} is side by side with {several}; {limit}", "parallel")
    if isinstance(order, Train) and facts.local.steps is None and order.local_epochs > policy.max_local_epochs:
        raise refuse(f"{order.local_epochs} local epochs exceed its limit of {policy.max_local_epochs}", "epochs")


def check_steps(policy: PolicySection, steps: int, slides: int, a_step: int, *, site: str) -> None:
    """Check the length of a round of a fixed number of steps: so many must not be more passes than may be asked for.

    Args:
        policy: `[policy]` of site.toml.
        steps: that are ordered (`local.steps`).
        slides: that this hospital trains on.
        a_step: of them, those that a step learns from.
        site: this site's name, for the message.

    Raises:
        RefusedError: as `check_order`.
    """
    if steps > policy.max_local_epochs * -(-slides // a_step):
        raise RefusedError(
            f"site {site} refuses: {steps} steps are more than {policy.max_local_epochs} passes over its slides, its "
            "limit",
            remedy="lower local.steps in federation.toml, or raise policy.max_local_epochs in site.toml",
            cause="epochs",
        )


_TUNING = ("fine-tune", "encode")
"""Kinds of stages that read pixels of the slides."""


def _check_model(policy: PolicySection, facts: RunFacts, refuse: Callable[..., RefusedError]) -> None:
    """Check that the order's model may be trained here."""
    if policy.models is not None and facts.model.name not in policy.models:
        raise refuse(f"model '{facts.model.name}' is not among those that may be trained here", "model")
    if not is_built_in(facts.model.name):
        _check_own_model(policy, facts, refuse)


def _check_own_model(policy: PolicySection, facts: RunFacts, refuse: Callable[..., RefusedError]) -> None:
    """Check that a model which is not fedpath's may run here. Reads metadata only: nothing of its package is imported.

    A name that nobody knows is refused in the same words: it may be of a later fedpath.
    """
    name = facts.model.name
    if name not in policy.own_models:
        raise refuse(
            f"model '{name}' is none of fedpath's here, and not among the own_models that may run", "own_model"
        )
    own = find_own(name)
    if own is None:
        raise refuse(
            f"no package installed here names model '{name}' (entry point '{name}' of group {GROUP})",
            "not_installed",
            f"install {facts.package or 'the package that the coordinator has it from'}",
        )
    if facts.package is not None and facts.package != own.origin:
        raise refuse(
            f"model '{name}' is of {own.origin} here, of {facts.package} at the coordinator",
            "package",
            f"install {facts.package}, or let the coordinator install {own.origin}",
        )
