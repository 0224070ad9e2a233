"""``federation.toml`` from a recipe and the answers to a few questions."""

from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from fedpath.cli.init.files import Written, check_new, write_new
from fedpath.cli.init.questions import Questions, checked_by, listed, reason_of
from fedpath.core.config import load_federation
from fedpath.core.config.federation import FederationSection, Labels
from fedpath.core.config.names import Address, FederationName
from fedpath.core.recipes import find_recipe, recipes

NAME_WORDS = "should be 1 to 63 letters, digits, - and _, and begin with a letter or digit"
_ADDRESS_WORDS = "should be HOST:PORT, for example fedpath.example.org:9443"


def ask_coordinator(
    questions: Questions,
    out: Path,
    *,
    recipe: str | None,
    name: str | None,
    sites: str | None,
    address: str | None,
    labels: str | None,
) -> Written:
    """Ask what an option does not say, and write federation.toml.

    Raises:
        ConfigError: the file exists, an option is wrong, or nothing may be asked and an answer is missing.
    """
    check_new(out)
    titles = {one.name: one.title.partition(": ")[2] for one in recipes()}
    chosen = find_recipe(questions.choose("Which recipe?", titles, option="--recipe", given=recipe))
    named = questions.ask(
        "What is the federation called?",
        checked_by(FederationName, NAME_WORDS),
        option="--name",
        given=name,
        default="my-federation",
    )
    hospitals = listed(
        questions.ask("Which hospitals may take part (names, with commas)?", _sites, option="--sites", given=sites)
    )
    where = questions.ask(
        "Where do the hospitals reach the coordinator (host:port)?",
        checked_by(Address, _ADDRESS_WORDS),
        option="--address",
        given=address,
    )
    classes = listed(
        questions.ask(
            "Which labels do the manifests have (with commas, in class order)?",
            _labels,
            option="--labels",
            given=labels,
            default="normal,tumour",
        )
    )
    text = chosen.filled(name=named, sites=hospitals, address=where, labels=classes)
    write_new(out, text, load_federation)
    answers = {"recipe": chosen.name, "name": named, "sites": hospitals, "address": where, "labels": classes}
    steps = [
        f"edit [features] of {out}: every hospital's features must be made exactly so",
        f"try it here:        fedpath simulate --config {out}",
        f"make the kits:      fedpath provision --config {out}",
        f"start:              fedpath server start --config {out} --dir coordinator",
    ]
    return Written(out, answers, steps)


def _sites(answer: str) -> str:
    if not listed(answer):
        raise ValueError("names at least one hospital, for example A,B,C")
    try:
        FederationSection(name="x", sites=listed(answer))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        which = f"{fault['input']}: " if isinstance(fault["input"], str) else ""
        raise ValueError(f"{which}{reason_of(error, NAME_WORDS)}") from None
    return answer


def _labels(answer: str) -> str:
    try:
        TypeAdapter(Labels).validate_python(listed(answer))
    except ValidationError as error:
        raise ValueError(reason_of(error, "names at least two labels, for example normal,tumour")) from None
    return answer
