"""Models of a user's own package: found by entry point, built like ours, and their faults named."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from own_package import installed, write_package
from safetensors.torch import load_file
from torch import Tensor, nn

from fedpath.core.bags import Bag
from fedpath.core.cohort import Example
from fedpath.core.config.federation import FeaturesSection
from fedpath.core.config.model import ModelSection
from fedpath.core.errors import ConfigError, DataError
from fedpath.core.exchange.groups import load_arrays, to_arrays
from fedpath.core.models import BagModel, BagOutput, available_models, build_model, load_model, save_model
from fedpath.core.models.checkpoint import model_metadata
from fedpath.core.models.own import GROUP, find_own, origin_of, own_models
from fedpath.core.training import TrainSettings, evaluate, train

WIDTH, CLASSES = 6, 3
WHO = "own model 'my-mil' (mymil:MyMIL of package my-package 1.0): "
HEAD = "import torch\nfrom torch import nn\n\n"
PLAIN = """\
class MyMIL(nn.Module):
    def __init__(self, width, n_classes{takes}):
        super().__init__()
        self.head = nn.Linear(width, n_classes)
        {init}

    def forward(self, {arguments}):
        logits, n = self.head(x).mean(dim=0), len(x)
        {body}
"""


def plain(body: str = "return logits", *, arguments: str = "x", init: str = "pass", takes: str = "") -> str:
    """The source of a module whose logits are the mean of the patches' logits."""
    return HEAD + PLAIN.format(body=body, arguments=arguments, init=init, takes=takes)


def make_bag(n: int = 5) -> Bag:
    random = torch.Generator().manual_seed(n)
    coords_N2 = torch.randint(0, 10_000, (n, 2), generator=random)
    return Bag("slide", torch.randn(n, WIDTH, generator=random).half(), coords_N2, 256)


@contextmanager
def package(folder: Path, source: str | None = None) -> Iterator[None]:
    write_package(folder, **({} if source is None else {"source": source}))
    with installed(folder):
        yield


def build(seed: int = 0, **options: object) -> BagModel:
    return build_model("my-mil", width=WIDTH, n_classes=CLASSES, options=options, seed=seed)


def fault(source: str, folder: Path, **options: object) -> ConfigError:
    """What is said about a package of this source; it always says whose."""
    with package(folder, source), pytest.raises(ConfigError) as caught:
        build(**options)
    assert caught.value.message.startswith(WHO), caught.value
    assert caught.value.remedy
    return caught.value


# --- found ------------------------------------------------------------------------------------------------------------


def test_finding_a_model_imports_nothing(tmp_path: Path) -> None:
    module = write_package(tmp_path)
    with installed(tmp_path):
        (own,) = own_models()
        assert (own.name, own.package, own.version, own.target) == ("my-mil", "my-package", "1.0", "mymil:MyMIL")
        assert (origin_of("my-mil"), origin_of("acmil")) == ("my-package 1.0", None)
        assert find_own("other") is None
        assert "my-mil" not in [model.name for model in available_models()]
        build_model("acmil", width=WIDTH, n_classes=CLASSES, seed=0)
        with pytest.raises(ConfigError, match="did you mean 'my-mil'"):
            build_model("my-mill", width=WIDTH, n_classes=CLASSES, seed=0)
        assert list(module.parent.glob("imported-by-*")) == []
        build()
        assert module.with_name("imported-by-nobody").exists()


def test_a_name_of_ours_is_refused_and_the_package_named(tmp_path: Path) -> None:
    module = write_package(tmp_path, entry="acmil")
    with installed(tmp_path), pytest.raises(ConfigError) as caught:
        build_model("acmil", width=WIDTH, n_classes=CLASSES, seed=0)
    assert "'acmil' (mymil:MyMIL of package my-package 1.0): fedpath has a model of this name" in caught.value.message
    assert not module.with_name("imported-by-nobody").exists()


def test_two_packages_with_one_name_are_both_named(tmp_path: Path) -> None:
    for package_name in ("my-package", "yours"):
        write_package(tmp_path / package_name, package=package_name)
    with installed(tmp_path / "my-package", tmp_path / "yours"), pytest.raises(ConfigError) as caught:
        build()
    assert caught.value.message == "model 'my-mil' is named by two packages: my-package 1.0 and yours 1.0"


# --- built ------------------------------------------------------------------------------------------------------------


def test_a_plain_module_is_a_bag_model(tmp_path: Path) -> None:
    with package(tmp_path):
        model, again, other = build(7, hidden=4), build(7, hidden=4), build(8, hidden=4)
        from mymil import MyMIL
    state = model.state_dict()
    # Its own names, without those integers: the state loads into the class, and one trained without fedpath loads here.
    assert list(state) == [name for name in MyMIL(WIDTH, CLASSES, 4).state_dict() if "num_batches" not in name]
    assert model.parameter_groups() == {"image": list(state)}
    assert model.training
    assert all(torch.equal(state[name], value) for name, value in again.state_dict().items())
    assert not torch.equal(state["reduce.0.weight"], other.state_dict()["reduce.0.weight"])

    mine, bag = MyMIL(WIDTH, CLASSES, hidden=4).eval(), make_bag()
    mine.load_state_dict(dict(state))
    logits, attention, slide = mine(bag.features_ND.float())
    output = model.eval()(bag)
    for got, expected in (
        (output.logits_C, logits[0]),
        (output.attention_KN, attention),
        (output.slide_vector_L, slide[0]),
        (model.loss(output, 2, torch.tensor([1.0, 1.0, 3.0])), -3 * logits[0].log_softmax(0)[2]),
    ):
        torch.testing.assert_close(got, expected)
    with torch.no_grad():
        mine.head.bias += 1
    again.load_state_dict(mine.state_dict())
    torch.testing.assert_close(again.eval()(bag).logits_C, output.logits_C + 1)
    with pytest.raises(RuntimeError, match="Unexpected"):
        model.load_state_dict(state | {"more": torch.zeros(1)})


def test_building_draws_from_the_seed_alone(tmp_path: Path) -> None:
    with package(tmp_path):
        torch.manual_seed(3)
        expected = torch.rand(4)
        torch.manual_seed(3)
        build()
        assert torch.equal(torch.rand(4), expected)


@pytest.mark.parametrize(
    "returned",
    [
        "logits",
        "logits[None]",
        "(logits,)",
        "logits, None, None",
        "{'logits': logits[None], 'other': 1}",
        "__import__('types').SimpleNamespace(logits=logits)",
        "__import__('collections').namedtuple('Out', 'other logits')(1, logits)",
    ],
)
def test_logits_alone_will_do(tmp_path: Path, returned: str) -> None:
    with package(tmp_path, plain(f"return {returned}")):
        model, bag = build(), make_bag(4)
    output = model(bag)
    torch.testing.assert_close(output.logits_C, model.module.head(bag.features_ND.float()).mean(dim=0))
    torch.testing.assert_close(output.attention_KN, torch.full((1, 4), 0.25))
    assert torch.equal(output.slide_vector_L, output.logits_C)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ("torch.arange(n) + 1.0", lambda n: torch.arange(1, n + 1) / (n * (n + 1) / 2)),
        ("torch.ones(2, n) / n", lambda n: torch.full((2, n), 1 / n)),
        ("torch.stack([torch.zeros(n), torch.eye(n)[0]])", lambda n: torch.stack([torch.full((n,), 1 / n), eye(n)])),
    ],
)
@pytest.mark.parametrize(
    "returned",
    ["(logits, {}, x.mean(dim=0)[None])", "dict(slide_vector=x[0], attention={}, logits=logits)"],
)
def test_attention_is_divided_by_its_sum(tmp_path: Path, weights: str, expected: object, returned: str) -> None:
    with package(tmp_path, plain(f"return {returned.format(weights)}")):
        model = build()
    for n in (1, 2, 9):
        output = model(make_bag(n))
        wanted = expected(n)  # type: ignore[operator]
        torch.testing.assert_close(output.attention_KN, wanted.reshape(-1, n).float())
        assert output.slide_vector_L.shape == (WIDTH,)


def eye(n: int) -> Tensor:
    return torch.eye(n)[0]


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("x, where", "where"),
        ("x, where, label=None", "where"),
        ("x, label=None, coords=None", "coords"),
        ("x, *, coordinates=None", "coordinates"),
        ("x, label=None, return_attention=False", None),
        ("x, *more, **others", None),
    ],
)
def test_coordinates_go_where_they_are_asked_for(tmp_path: Path, arguments: str, name: str | None) -> None:
    body = "self.seen = locals()"
    with package(tmp_path, plain(f"{body}\n        return logits", arguments=arguments)):
        model, bag = build(), make_bag()
    model(bag)
    asked = ("where", "coords", "coordinates", "label", "return_attention")
    seen = {key: value for key, value in model.module.seen.items() if key in asked and isinstance(value, Tensor)}
    assert list(seen) == ([] if name is None else [name])
    for value in seen.values():
        assert value.dtype == torch.int64
        assert torch.equal(value, bag.coords_N2)


def test_a_function_may_make_the_module(tmp_path: Path) -> None:
    source = HEAD + "class Inner(nn.Linear):\n    def forward(self, x): return super().forward(x).sum(dim=0)\n\n"
    source += "def MyMIL(*, width, n_classes, bias: bool = True): return Inner(width, n_classes, bias)\n"
    with package(tmp_path, source):
        assert list(build().state_dict()) == ["weight", "bias"]
        assert list(build(bias=False).state_dict()) == ["weight"]


BAG_MODEL = """\
from torch import nn

from fedpath.core.models import BagModel, BagOutput


class MyMIL(BagModel):
    def __init__(self, width, n_classes, scale=1.0):
        super().__init__()
        self.scale = scale
        self.norm, self.head = nn.BatchNorm1d(width), nn.Linear(width, n_classes)

    def forward(self, bag):
        x = self.norm(bag.features_ND.to(self.head.weight))
        weights = x.new_full((1, len(bag)), 1 / len(bag))
        return BagOutput(self.head(weights @ x)[0], weights, x.mean(dim=0))

    def loss(self, output, target, class_weights_C=None):
        return self.scale * output.logits_C[target]

    def parameter_groups(self):
        state = list(self.state_dict())
        {groups}
"""
TWO_GROUPS = "return {part: [name for name in state if name.startswith(part)] for part in ('norm', 'head')}"


def test_a_bag_model_is_used_as_it_is(tmp_path: Path) -> None:
    with package(tmp_path, BAG_MODEL.replace("{groups}", TWO_GROUPS)):
        model = build(scale=2.0)
        from mymil import MyMIL
    assert type(model) is MyMIL
    assert model.parameter_groups() == {
        "norm": ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"],
        "head": ["head.weight", "head.bias"],
    }
    output = model(make_bag())
    assert isinstance(output, BagOutput)
    assert torch.equal(model.loss(output, 1), 2 * output.logits_C[1])


def test_statistics_of_a_batch_norm_travel_and_its_count_does_not(tmp_path: Path) -> None:
    with package(tmp_path):
        model, received = build(), build(seed=1)
    examples = [Example(make_bag(n), n % CLASSES, f"p{n}", f"s{n}") for n in range(2, 9)]
    train(model, examples, TrainSettings(epochs=2, learning_rate=1e-2), seed=0)
    arrays = to_arrays(model)
    assert sorted(arrays) == [f"image/{name}" for name in sorted(model.state_dict())]
    assert not any("num_batches" in name for name in arrays)
    assert abs(arrays["image/reduce.1.running_mean"]).max() > 0
    load_arrays(received, arrays)
    assert all(torch.equal(received.state_dict()[name], value) for name, value in model.state_dict().items())
    assert evaluate(received, examples).loss == evaluate(model, examples).loss
    received.load_state_dict(model.state_dict())  # strict, with torch's own version marks and without them
    received.load_state_dict(dict(model.state_dict()))


# --- at fault ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import absent_module", "cannot be imported: ModuleNotFoundError: No module named 'absent_module'"),
        ("def f(:", "cannot be imported: SyntaxError"),
        ("OtherMIL = 1", "cannot be imported: AttributeError"),
        ("MyMIL = 1", "is no class"),
        ("MyMIL = dict", "gives a dict, no torch.nn.Module"),
        (plain(takes=", depth"), r"cannot be called .*missing a required argument: 'depth'"),
        (plain().replace("width, n_classes", "width"), "unexpected keyword argument 'n_classes'"),
        (plain(init="raise ValueError('boom\\nbang')"), "cannot be built: ValueError: boom$"),
        (plain("raise KeyError"), "forward fails on 7 × 6 features: KeyError$"),
        (plain(arguments=""), "forward fails on 7 × 6 features: TypeError"),
        (plain(arguments="x, xy, label"), "forward also asks for label"),
        (plain("return logits + x.topk(2, dim=0).values[0, :1]"), "forward fails on 1 × 6 features: RuntimeError"),
        (plain("return logits[:2]"), r"logits of shape \(2,\)"),
        (plain("return self.head(x)"), r"logits of shape \(7, 3\)"),
        (plain("return logits / 0"), "NaN or infinite values on a bag of 7 × 6 features"),
        (plain("return logits + (x - x.mean(dim=0)).square().sum() / (n - 1)"), "NaN or infinite .* a bag of 1 ×"),
        (plain("return [logits]"), "forward returns a list"),
        (plain("return logits, 1, 2, 3"), "forward returns a tuple of 4"),
        (plain("return {'y': logits}"), "returns logits that is a NoneType"),
        (plain("return logits, 'attention'"), "returns attention that is a str"),
        (plain("return logits, logits.softmax(0)[None]"), r"attention of shape \(1, 3\) for 7 patches"),
        (plain("return logits, torch.ones(n, 1)"), r"attention of shape \(7, 1\) for 7 patches"),
        (plain("return logits, torch.randn(n)"), "attention below 0 or not finite"),
        (plain("return logits, torch.full((n,), torch.nan)"), "attention below 0 or not finite"),
        (plain("return logits, None, x"), r"slide vector of shape \(7, 6\)"),
        (plain("return logits.detach()"), "nothing to train"),
        (plain(init="self.register_buffer('steps', torch.tensor(0))"), "'steps' is torch.int64: only float32"),
        (plain(init="self.register_buffer('on', torch.ones(2).bool())"), "'on' is torch.bool: only float32"),
        (plain(init="self.half = nn.Linear(2, 2).half()"), "'half.weight' is torch.float16"),
        (plain(init="self.register_buffer('far', torch.tensor(float('inf')))"), "'far' holds NaN or infinite"),
        (plain(init="self.norm = nn.BatchNorm1d(4, momentum=None)"), "'norm.num_batches_tracked' is torch.int64"),
        (plain(init="type(self).get_extra_state = lambda self: {}"), "keeps '_extra_state' in its state"),
        (plain(init="type(self).get_extra_state = lambda: {}"), "does not tell its state .*: TypeError"),
        (BAG_MODEL.replace("{groups}", "return {}"), r"parameter_groups\(\) and state_dict\(\) differ in: head"),
        (BAG_MODEL.replace("{groups}", "return {'a': state, 'b': state[:1]}"), "differ in: norm.weight"),
        (BAG_MODEL.replace("x.mean(dim=0))", "x.mean(dim=0)).logits_C"), "gives no BagOutput with 3 logits|fails"),
        (BAG_MODEL.replace("[0], weights", "[0], weights.T"), r"attention of shape \(7, 1\)"),
        (BAG_MODEL.replace("return self.scale *", "return self.scales *"), "fails on a bag of 7 × 6 features: Attr"),
    ],
)  # fmt: skip
def test_a_fault_names_entry_point_package_and_remedy(tmp_path: Path, source: str, words: str) -> None:
    error = fault(source, tmp_path)
    assert re.search(words, error.message), error.message
    if "Error" in words:  # the module's own exception, for --debug
        assert error.__cause__ is not None


def test_remedies_that_say_what_to_write(tmp_path: Path) -> None:
    for number, (source, options, words) in enumerate((
        (plain(takes=", depth=2, heads=4"), {"depht": 3}, "the options it takes are depth, heads"),
        (plain(takes=", depth=2"), {"width": 3}, r"it follows from \[features\] and \[task\]"),
        (plain(takes=", when=None"), {"when": torch}, "use texts, numbers, lists and tables"),
        (plain(takes=", rate=0.1"), {"rate": float("nan")}, "use texts, numbers, lists and tables"),
        (plain(init="self.register_buffer('steps', torch.tensor(0))"), {}, r"register_buffer\(…, persistent=False\)"),
        (plain(init="self.norm = nn.BatchNorm1d(4, momentum=None)"), {}, "give that BatchNorm a momentum"),
    )):  # fmt: skip
        assert re.search(words, fault(source, tmp_path / str(number), **options).remedy)


def test_a_constant_that_is_kept_out_of_the_state_is_welcome(tmp_path: Path) -> None:
    with package(tmp_path, plain(init="self.register_buffer('steps', torch.tensor(0), persistent=False)")):
        assert list(build().state_dict()) == ["head.weight", "head.bias"]


def test_a_fault_of_training_alone_is_named_too(tmp_path: Path) -> None:
    with package(tmp_path):
        model = build()
    with pytest.raises(ConfigError, match=r"forward fails on 1 × 6 features: ValueError: Expected more than 1 value"):
        train(model, [Example(make_bag(1), 0, "p", "s")], TrainSettings(), seed=0)


# --- kept -------------------------------------------------------------------------------------------------------------


def metadata(**options: object) -> dict[str, str]:
    section = ModelSection(name="my-mil", options=options)
    return model_metadata("lung", section, FeaturesSection(encoder="e", width=WIDTH), ["a", "b", "c"])


def test_a_saved_model_comes_back_with_its_package(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    with package(tmp_path):
        model = build(hidden=4)
        save_model(path, model.state_dict(), metadata(hidden=4))
        with torch.inference_mode():
            loaded, facts = load_model(path)
        from mymil import MyMIL
    assert facts["package"] == "my-package 1.0"
    assert json.loads(facts["options"]) == {"hidden": 4}
    assert torch.equal(loaded(make_bag()).logits_C, model.eval()(make_bag()).logits_C)
    MyMIL(WIDTH, CLASSES, hidden=4).load_state_dict(load_file(path))  # without fedpath

    with pytest.raises(DataError) as caught:
        load_model(path)
    assert caught.value.message.endswith("'my-mil' comes from package my-package 1.0, which is not installed here")
    assert caught.value.remedy == f"install my-package 1.0: it names 'my-mil' as an entry point of group {GROUP}"


def test_another_package_or_version_is_told_from_the_one_it_was_saved_with(tmp_path: Path) -> None:
    path = tmp_path / "best.safetensors"
    with package(tmp_path / "one"):
        save_model(path, build().state_dict(), metadata())
    stranger = write_package(tmp_path / "two", package="stranger")
    with (
        installed(tmp_path / "two"),
        pytest.raises(DataError, match=r"my-package 1\.0; here 'my-mil' is of stranger 1\.0"),
    ):
        load_model(path)
    assert not stranger.with_name("imported-by-nobody").exists()
    write_package(tmp_path / "three", version="2.0", source=plain())
    with installed(tmp_path / "three"), pytest.raises(DataError, match="does not fit model") as caught:
        load_model(path)
    assert caught.value.remedy == "load it with the version of my-package 1.0 that wrote it"


def test_weights_under_two_names_are_saved_and_come_back(tmp_path: Path) -> None:
    tied = plain(init="self.again = self.head")
    with package(tmp_path, tied):
        model = build()
        save_model(tmp_path / "m.safetensors", model.state_dict(), metadata())
        loaded, _ = load_model(tmp_path / "m.safetensors")
    assert loaded.module.again.weight is loaded.module.head.weight
    assert torch.equal(loaded.state_dict()["again.weight"], model.state_dict()["head.weight"])


def test_the_adapted_module_may_be_a_part_of_another(tmp_path: Path) -> None:
    with package(tmp_path):
        outer = nn.ModuleDict({"wsi": build(), "other": nn.Linear(2, 2)})
        twin = nn.ModuleDict({"wsi": build(seed=1), "other": nn.Linear(2, 2)})
    state = outer.state_dict()
    assert "wsi.reduce.0.weight" in state
    assert not any("module." in name for name in state)
    twin.load_state_dict(state)
    assert all(torch.equal(twin.state_dict()[name], value) for name, value in state.items())


def test_the_module_of_the_documentation(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "models.md").read_text(encoding="utf-8")
    section = page.partition("## Use your own model")[2].partition("\n## ")[0]
    (source,) = re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)
    (pyproject,) = re.findall(r"```toml\n(# pyproject.toml.*?)```", section, flags=re.DOTALL)
    assert '[project.entry-points."fedpath.models"]\nmy-mil = "mypackage.models:MyMIL"' in pyproject
    with package(tmp_path, source):
        model = build(hidden=128)
    output = model(make_bag(9))
    assert output.slide_vector_L.shape == (128,)
    torch.testing.assert_close(output.attention_KN.sum(dim=1), torch.ones(1))
