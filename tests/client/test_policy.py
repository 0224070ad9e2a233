"""What this hospital accepts."""

from pathlib import Path

import pytest
from own_package import installed, write_package

from fedpath.client.policy import check_order
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.config.site import PolicySection
from fedpath.core.errors import ConfigError, RefusedError
from fedpath.core.exchange.messages import (
    Describe,
    Encode,
    Evaluate,
    Finish,
    Order,
    Refuse,
    RunFacts,
    StageFacts,
    Train,
)

HASH = "0" * 64


def facts(federation: str = "lung", model: str = "acmil", package: str | None = None) -> RunFacts:
    return RunFacts(
        federation=federation,
        run="r1",
        seed=0,
        labels=["no", "yes"],
        features=FeaturesSection(encoder="e", width=4),
        model=ModelSection(name=model),
        package=package,
    )


def train(local_epochs: int = 1, **changes: str | None) -> Train:
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


@pytest.mark.parametrize(("limit", "beside", "allowed"), [(1, [], True), (1, ["r2"], False), (2, ["r2"], True)])
def test_runs_side_by_side(limit: int, beside: list[str], allowed: bool) -> None:
    policy, order = PolicySection(max_parallel_runs=limit), Describe(facts=facts(), beside=beside)
    if allowed:
        check_order(policy, order, site="A", federation="lung")
        return
    with pytest.raises(RefusedError, match=r"run r1 is side by side with run r2; it takes part in 1 at the same time"):
        check_order(policy, order, site="A", federation="lung")


def all_orders(**changes: str | None) -> list[Order]:
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


def refusal(policy: PolicySection, order: Order, remedy: str = "[policy]") -> str:
    with pytest.raises(RefusedError) as caught:
        check(policy, order)
    assert caught.value.exit_code == 5
    assert remedy in caught.value.remedy
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


def staged(order: Order, kind: str) -> Order:
    stage = StageFacts(name="s", kind=kind, number=1, of=4)  # type: ignore[arg-type]
    return order.model_copy(update={"facts": order.facts.model_copy(update={"stage": stage})})


def test_fine_tuning() -> None:
    orders = [*all_orders(), Encode(facts=facts())]
    for kind in ("select", "fine-tune", "encode", "train"):
        for order in orders:
            check(PolicySection(), staged(order, kind))
            if kind in ("fine-tune", "encode"):
                assert refusal(PolicySection(fine_tune=False), staged(order, kind)) == (
                    "site A refuses: stage 's' is one of fine-tuning, and no encoder may be fine-tuned here"
                )
            else:
                check(PolicySection(fine_tune=False), staged(order, kind))


def test_selectors_and_heads_are_models_that_are_trained() -> None:
    policy = PolicySection(models=["acmil"])
    for kind, model in (("select", "vib"), ("fine-tune", "clam-sb"), ("train", "other")):
        assert f"model '{model}' is not among" in refusal(policy, staged(train(model=model), kind))
    # Encoding trains nothing.
    check(policy, staged(Encode(facts=facts(model="other")), "encode"))


OWN = {"model": "my-mil", "package": "my-package 1.0"}


def test_models_of_other_packages_run_only_where_they_are_named(tmp_path: Path) -> None:
    module = write_package(tmp_path)
    with installed(tmp_path):
        for order in all_orders(**OWN):
            check(PolicySection(own_models=["my-mil"]), order)
            check(PolicySection(own_models=["my-mil"], models=["acmil", "my-mil"]), order)
            for policy in (PolicySection(), PolicySection(models=["my-mil"]), PolicySection(own_models=["my-mill"])):
                assert refusal(policy, order) == (
                    "site A refuses: model 'my-mil' is none of fedpath's here, "
                    "and not among the own_models that may run"
                )
            # `models` counts for them too.
            message = refusal(PolicySection(own_models=["my-mil"], models=["acmil"]), order)
            assert "model 'my-mil' is not among those that may be trained here" in message
        # fedpath's own need no mention.
        check(PolicySection(own_models=["my-mil"]), train())
    # Whatever was decided, it was decided before anything of the package ran.
    assert list(tmp_path.glob("imported-by-*")) == []
    assert module.exists()


def test_a_model_whose_package_is_not_installed_is_refused_by_name(tmp_path: Path) -> None:
    allowed = PolicySection(own_models=["my-mil"])
    for order in all_orders(**OWN):
        assert refusal(allowed, order, remedy="install my-package 1.0") == (
            "site A refuses: no package installed here names model 'my-mil' "
            "(entry point 'my-mil' of group fedpath.models)"
        )
    write_package(tmp_path, version="1.1")
    with installed(tmp_path):
        for order in all_orders(**OWN):
            assert refusal(allowed, order, remedy="install my-package 1.0, or let the coordinator") == (
                "site A refuses: model 'my-mil' is of my-package 1.1 here, of my-package 1.0 at the coordinator"
            )
        check(allowed, train(model="my-mil", package="my-package 1.1"))
        check(allowed, train(model="my-mil"))  # a coordinator that does not say
    write_package(tmp_path, package="yours")
    with installed(tmp_path), pytest.raises(ConfigError, match=r"two packages: my-package 1\.1 and yours 1\.0"):
        check(allowed, train(**OWN))
    assert list(tmp_path.glob("imported-by-*")) == []
