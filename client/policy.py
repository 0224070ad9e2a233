"""What this hospital accepts: checked before anything is done; nothing from outside can switch it off."""

from fedpath.core.config.site import PolicySection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.messages import Order, Train


def check_order(policy: PolicySection, order: Order, *, site: str, federation: str) -> None:
    """Check an order against the hospital's policy.

    Args:
        policy: `[policy]` of site.toml.
        order: what the coordinator asks.
        site: this site's name, for the message.
        federation: the federation the kit is for; orders of another one are never carried out.

    Raises:
        RefusedError: the text names no path, slide or patient, so it may be sent to the coordinator.
    """

    def refuse(reason: str) -> RefusedError:
        return RefusedError(f"site {site} refuses: {reason}", remedy="agree on it, then change [policy] in site.toml")

    facts = order.facts
    if facts.federation != federation:
        raise refuse(f"the order is of federation '{facts.federation}', the kit of '{federation}'")
    if policy.federations is not None and facts.federation not in policy.federations:
        raise refuse(f"federation '{facts.federation}' is not among those it takes part in")
    if policy.models is not None and facts.model.name not in policy.models:
        raise refuse(f"model '{facts.model.name}' is not among those that may be trained here")
    if isinstance(order, Train) and order.local_epochs > policy.max_local_epochs:
        raise refuse(f"{order.local_epochs} local epochs exceed its limit of {policy.max_local_epochs}")
