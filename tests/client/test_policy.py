"""What this hospital accepts."""

import pytest

from fedpath.client.policy import check_order
from fedpath.core.config.federation import FeaturesSection, ModelSection
from fedpath.core.config.site import PolicySection
from fedpath.core.errors import RefusedError
from fedpath.core.exchange.messages import Describe, Evaluate, Finish, Order, Refuse, RunFacts, Train

HASH = "0" * 64


def facts(federation: str = "lung", model: str = "acmil") -> RunFacts:
    return RunFacts(
        federation=federation,
        run="r1",
        seed=0,
        labels=["no", "yes"],
        features=FeaturesSection(encoder="e", width=4),
        model=ModelSection(name=model),
    )


def train(local_epochs: int = 1, **changes: str) -> Train:
    return Train(
        facts=facts(**changes),
        round=1,
        rounds=1,
        base=HASH,
        local_epochs=local_epochs,
        learning_rate=0.1,
        weight_decay=0.0,
        class_weights=False,
    )


def all_orders(**changes: str) -> list[Order]:
    run = facts(**changes)
    return [
        Describe(facts=run),
        train(**changes),
        Evaluate(facts=run, round=0, base=HASH, split="test"),
        Finish(facts=run, base=HASH, best_round=0),
        Refuse(facts=run, reason="x"),
    ]


def check(policy: PolicySection, order: Order) -> None:
    check_order(policy, order, site="A", federation="lung")


def refusal(policy: PolicySection, order: Order) -> str:
    with pytest.raises(RefusedError) as caught:
        check(policy, order)
    assert caught.value.exit_code == 5
    assert "[policy]" in caught.value.remedy
    return caught.value.message


def test_a_policy_that_says_nothing_allows_what_the_kit_is_for() -> None:
    for order in all_orders():
        check(PolicySection(), order)


def test_orders_of_another_federation_than_the_kits_are_never_carried_out() -> None:
    generous = PolicySection(federations=["lung", "liver"])
    for order in all_orders(federation="liver"):
        assert refusal(generous, order) == "site A refuses: the order is of federation 'liver', the kit of 'lung'"


def test_federations() -> None:
    for order in all_orders():
        check(PolicySection(federations=["liver", "lung"]), order)
        for allowed in ([], ["liver"], ["Lung"]):
            message = refusal(PolicySection(federations=allowed), order)
            assert message == "site A refuses: federation 'lung' is not among those it takes part in"


def test_models() -> None:
    for order in all_orders():
        check(PolicySection(models=["acmil"]), order)
    for order in all_orders(model="other"):
        assert "model 'other' is not among those that may be trained here" in refusal(
            PolicySection(models=["acmil"]), order
        )
    assert "model 'acmil'" in refusal(PolicySection(models=[]), train())


def test_local_epochs() -> None:
    check(PolicySection(max_local_epochs=3), train(3))
    assert refusal(PolicySection(max_local_epochs=3), train(4)) == (
        "site A refuses: 4 local epochs exceed its limit of 3"
    )
    assert "exceed" in refusal(PolicySection(), train(51))  # there is always a limit
    # Only training takes epochs.
    check(PolicySection(max_local_epochs=1), Describe(facts=facts()))
