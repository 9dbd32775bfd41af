"""Settings: TOML there and back, overrides from the command line, and every value that a configuration refuses."""

import math
import tomllib
from dataclasses import FrozenInstanceError, asdict, fields, replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import example, given

from refimpl import settings
from refimpl.config import (
    ATTENTIONS,
    CLUSTER_ORDERS,
    DTYPES,
    NORMS,
    OPTIMIZERS,
    POSITIONS,
    TIES,
    UNKNOWNS,
    VARIANTS,
    VOCABULARIES,
    DataConfig,
    ModelConfig,
    TrainConfig,
)
from refimpl.errors import InputError

SIZES = {"vocabulary": 100, "width": 8, "heads": 2, "layers": 1, "span": 8}
MEMORY = {**SIZES, "memory": 2}
CLUSTERS = {**MEMORY, "cutoffs": (10, 20), "divisor": 2}


@pytest.fixture
def file(tmp_path):
    """file("[model]\\n..."): a TOML file of that content."""

    def write(content):
        path = tmp_path / "mine.toml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def there_and_back(path, model, train, data):
    path.write_text(settings.to_toml(model, train, data), "utf-8")
    tables = settings.read(path)
    return settings.model_config(tables["model"]), TrainConfig(**tables["train"]), DataConfig(**tables["data"])


@pytest.mark.parametrize("name", settings.preset_names())
def test_every_preset_survives_toml(name, tmp_path):
    tables = settings.preset(name)
    configs = (settings.model_config({"vocabulary": 256, **tables["model"]}), TrainConfig(**tables["train"]),
               DataConfig(**tables["data"]))
    assert there_and_back(tmp_path / "file.toml", *configs) == configs
    assert replace(configs[1], learning_rate=0.5) != configs[1]


def test_the_presets_that_come_along():
    assert set(settings.preset_names()) == {
        "laptop", "tiny", "workstation-gpu", "enwik8", "enwik8-small", "enwik8-large", "text8", "text8-large",
        "enwik8-all-attention", "enwik8-all-attention-small", "text8-all-attention", "text8-all-attention-small",
        "wikitext103-all-attention", *(f"ablation-{variant}" for variant in VARIANTS)}


def test_every_value_survives_toml(tmp_path):
    """No value is its default, so that none can be lost unseen."""
    model = ModelConfig(**{**CLUSTERS, "share_positions": False, "attend_self": True, "adaptive_span": False,
                           "span_initial": 0.1, "span_ramp": 3, "span_penalty": 1e-7, "normalizer_epsilon": 1e-300,
                           "norm": "pre", "dropout": 1 / 3, "embedding_dropout": 0.2, "positions": "none",
                           "tie_tables": True, "tie_projections": True, "cluster_order": "reversed", "zero_past": True})
    train = TrainConfig(optimizer="sgd", learning_rate=1e22, clip=0.1, clip_each=True, warm_up=5, batch=3, block=7,
                        updates=11, seed=2**70, last_updates=4, last_factor=0.3, momentum=0.9, adam_betas=(0.1, 0.2),
                        dtype="float64", workers=3, attention="textbook", parallel="processes", log_every=9,
                        evaluate_every=8, evaluate_tokens=70, checkpoint_every=6, keep_checkpoints=5, on_nonfinite="skip")
    data = DataConfig("a/b", "word", "reversed", 3, "<unk>", "published", "appearance")
    assert there_and_back(tmp_path / "file.toml", model, train, data) == (model, train, data)
    for config, least in ((model, ModelConfig(**SIZES)), (train, TrainConfig()), (data, DataConfig())):
        same = {field.name for field in fields(config) if getattr(config, field.name) == getattr(least, field.name)}
        assert same <= {*SIZES, "feed_forward", "variant"}


@given(st.text())
@example("notes 📓.txt")
@example('C:\\texts\\"my" text\n.txt')
@example("\x7f\x00\u2028\ufeff")
def test_every_path_survives_toml(path):
    model, train = ModelConfig(**SIZES), TrainConfig()
    content = settings.to_toml(model, train, DataConfig(path=path))
    assert tomllib.loads(content)["data"]["path"] == path


@given(st.floats(0, allow_infinity=False, allow_nan=False))
@example(5e-324)
@example(1e16)
@example(1e23)
def test_every_number_survives_toml(rate):
    content = settings.to_toml(ModelConfig(**SIZES), TrainConfig(learning_rate=rate), DataConfig())
    assert TrainConfig(**tomllib.loads(content)["train"]).learning_rate == rate


def test_a_file_may_leave_out_what_it_likes(file):
    assert settings.read(file("")) == {"model": {}, "train": {}, "data": {}}
    assert settings.read(file("[train]\nupdates = 3\n")) == {"model": {}, "train": {"updates": 3}, "data": {}}


@pytest.mark.parametrize(("content", "fragments"), [
    ("[model]\nwdith = 1\n", ["unknown key model.wdith", "nearest: model.width", "heads"]),
    ("[train]\nlr = 1\n", ["unknown key train.lr", "expected one of", "learning_rate"]),
    ("[train]\nupdates_ = 1\n", ["unknown key train.updates_", "nearest: train.updates"]),
    ("[data]\nunknwon = 'error'\n", ["unknown key data.unknwon", "nearest: data.unknown"]),
    ("[model.width]\nx = 1\n[model.depth]\nx = 1", ["unknown key model.depth"]),
    ("[trian]\nupdates = 1\n", ["expected tables model, train, data", "got 'trian'", "nearest: train"]),
    ("[zzz]\n", ["expected tables model, train, data", "got 'zzz'"]),
    ("model = 1\n", ["expected tables model, train, data", "got 'model'"]),
    ("[[model]]\nwidth = 1\n", ["expected tables model, train, data", "got 'model'"]),
    ("[train]\nupdates = \n", ["expected TOML"]),
    (b"[train]\n# \xe9\n", ["expected TOML"]),
])
def test_a_file_that_is_not_settings(file, content, fragments):
    path = file(content)
    with pytest.raises(InputError) as error:
        settings.read(path)
    for fragment in (str(path), *fragments):
        assert fragment in str(error.value)


def test_the_nearest_is_offered_only_where_one_is_near(file):
    for content in ("[zzz]\n", "[train]\nqqqq = 1\n"):
        with pytest.raises(InputError) as error:
            settings.read(file(content))
        assert "(nearest: " not in str(error.value)


def test_an_unknown_preset():
    with pytest.raises(InputError, match=r"preset: expected one of .*laptop.*, got 'labtop' \(nearest: laptop\)"):
        settings.preset("labtop")
    for name in ("../presets/laptop", "laptop.toml", ""):
        with pytest.raises(InputError, match="preset: expected one of"):
            settings.preset(name)


@pytest.mark.parametrize(("assignment", "table", "key", "value"), [
    ("model.width=64", "model", "width", 64), ("model.width = 64 ", "model", "width", 64),
    ("train.learning_rate=1e-3", "train", "learning_rate", 1e-3), ("train.learning_rate=1", "train", "learning_rate", 1),
    ("train.updates=10_000", "train", "updates", 10000),
    ("model.attend_self=true", "model", "attend_self", True), ("model.attend_self=false", "model", "attend_self", False),
    ("model.cutoffs=[10, 20]", "model", "cutoffs", [10, 20]), ("model.cutoffs=[]", "model", "cutoffs", []),
    ("train.adam_betas=[0.9,0.99]", "train", "adam_betas", [0.9, 0.99]),
    ("train.optimizer=adagrad", "train", "optimizer", "adagrad"), ('train.optimizer="sgd"', "train", "optimizer", "sgd"),
    ("data.unknown=<unk>", "data", "unknown", "<unk>"), ("data.path=a=b.txt", "data", "path", "a=b.txt"),
    ("data.path=my texts/one.txt", "data", "path", "my texts/one.txt"), ("data.path='2024'", "data", "path", "2024"),
])
def test_an_override(assignment, table, key, value):
    result = settings.override({"model": {"span": 3}}, [assignment])
    assert result[table][key] == value
    assert type(result[table][key]) is type(value)
    assert result["model"]["span"] == 3
    configs = {"model": lambda values: ModelConfig(**{**CLUSTERS, **values}), "train": lambda values: TrainConfig(**values),
               "data": lambda values: DataConfig(**values)}
    made = getattr(configs[table](result[table]), key)
    assert made == (tuple(value) if isinstance(value, list) else value)


def test_the_last_override_wins_and_the_tables_stay_as_they_were():
    tables = {"model": {"width": 8}, "train": {}, "data": {}}
    result = settings.override(tables, ["model.width=16", "model.width=32", "train.seed=5"])
    assert result == {"model": {"width": 32}, "train": {"seed": 5}, "data": {}}
    assert tables == {"model": {"width": 8}, "train": {}, "data": {}}


@pytest.mark.parametrize("assignment", ["", "=", "model", "model=3", "model.=3", ".width=3", "width=3", "modle.width=3",
                                        "model.width", "model.width:3", "model.wdith=3", "model.width.x=3"])
def test_an_override_that_is_none(assignment):
    with pytest.raises(InputError, match="--set: ") as error:
        settings.override({}, [assignment])
    assert "model.width" in str(error.value) or repr(assignment) in str(error.value) or "expected one of" in str(error.value)


def test_a_required_value_is_named():
    for name in SIZES:
        with pytest.raises(InputError, match=rf"model\.{name}: expected a value, got none"):
            settings.model_config({key: value for key, value in SIZES.items() if key != name})


@pytest.mark.parametrize(("changes", "message"), [
    *(({name: 0}, rf"model\.{name}: expected 1 or more, got 0") for name in (*SIZES, "span_ramp", "divisor")),
    *(({name: -1}, rf"model\.{name}: expected 1 or more, got -1") for name in (*SIZES, "span_ramp", "divisor")),
    *(({name: -1}, rf"model\.{name}: expected 0 or more, got -1")
      for name in ("memory", "feed_forward", "span_penalty", "normalizer_epsilon")),
    *(({name: value}, rf"model\.{name}: expected a number in \[0, 1\), got {value}")
      for name in ("dropout", "embedding_dropout") for value in (-0.1, 1.0, 1.5)),
    *(({"span_initial": value}, rf"model\.span_initial: expected a number in \[0, 1\], got {value}")
      for value in (-0.5, 1.5)),
    *(({name: "both"}, rf"model\.{name}: expected one of .*, got 'both'")
      for name in ("variant", "positions", "norm", "cluster_order")),
    *(({name: value}, rf"model\.{name}: expected int, got {value!r}")
      for name in (*SIZES, "memory", "feed_forward", "span_ramp", "divisor") for value in (1.0, "8", True, None)),
    *(({name: value}, rf"model\.{name}: expected float, got {value!r}")
      for name in ("dropout", "embedding_dropout", "span_initial", "span_penalty", "normalizer_epsilon")
      for value in ("0.1", True, None, math.nan, math.inf)),
    *(({name: value}, rf"model\.{name}: expected bool, got {value!r}")
      for name in ("share_positions", "attend_self", "adaptive_span", "tie_tables", "tie_projections", "zero_past")
      for value in (1, "true", None)),
    *(({name: value}, rf"model\.{name}: expected str, got {value!r}")
      for name in ("variant", "positions", "norm", "cluster_order") for value in (1, True, None)),
    *(({"cutoffs": value}, r"model\.cutoffs: expected a list of numbers, got")
      for value in ([1.5], ["a"], [True], "ab", 5, [[1]])),
    ({"heads": 3}, r"model\.heads: expected a divisor of width 8, got 3"),
    ({"heads": 16}, r"model\.heads: expected a divisor of width 8, got 16"),
    ({"feed_forward": 4}, r"model\.feed_forward: expected 0 beside persistent memory.* got 4 with memory 2"),
    ({"variant": "transformer"}, r"model\.variant transformer: expected memory 0, got 2"),
    ({"tie_projections": True}, r"model\.tie_projections: expected cutoffs with it, got none"),
    ({"cutoffs": (20, 10)}, r"model\.cutoffs: expected an ascending list .* 100, got \[20, 10\]"),
    ({"cutoffs": (10, 101)}, r"model\.cutoffs: expected an ascending list .* 100, got \[10, 101\]"),
    ({"cutoffs": (0, 10)}, r"model\.cutoffs: expected an ascending list .* 100, got \[0, 10\]"),
    ({"cutoffs": (-5,)}, r"model\.cutoffs: expected an ascending list"),
    ({"cutoffs": (10, 20), "divisor": 3}, r"model\.divisor: .* whole for all 3 clusters, got width 8 and divisor 3"),
    ({"cutoffs": (10, 20), "divisor": 4}, r"model\.divisor: .* whole for all 3 clusters, got width 8 and divisor 4"),
])
def test_a_model_that_cannot_be(changes, message):
    ModelConfig(**MEMORY)
    with pytest.raises(InputError, match=f"^{message}") as error:
        ModelConfig(**{**MEMORY, **changes})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("changes", "message"), [
    *(({name: 0}, rf"train\.{name}: expected 1 or more, got 0")
      for name in ("batch", "block", "updates", "log_every", "keep_checkpoints")),
    *(({name: -1}, rf"train\.{name}: expected 0 or more, got -1")
      for name in ("learning_rate", "clip", "warm_up", "seed", "last_updates", "last_factor", "workers", "evaluate_every",
                   "evaluate_tokens", "checkpoint_every")),
    *(({"momentum": value}, rf"train\.momentum: expected a number in \[0, 1\), got {value}") for value in (-0.1, 1.0)),
    *(({"adam_betas": value}, r"train\.adam_betas: expected two numbers in \[0, 1\), got")
      for value in ((0.9,), (), (0.9, 1.0), (-0.1, 0.9), (0.9, 0.99, 0.999))),
    *(({"adam_betas": value}, r"train\.adam_betas: expected a list of numbers, got")
      for value in (0.9, "ab", (0.9, "0.9"), (0.9, math.nan), (True, False))),
    *(({name: "best"}, rf"train\.{name}: expected one of .*, got 'best'") for name in ("optimizer", "dtype", "attention")),
    *(({name: value}, rf"train\.{name}: expected int, got {value!r}")
      for name in ("warm_up", "batch", "block", "updates", "seed", "last_updates", "workers", "log_every", "evaluate_every",
                   "evaluate_tokens", "checkpoint_every", "keep_checkpoints") for value in (1.0, "8", True, None)),
    *(({name: value}, rf"train\.{name}: expected float, got {value!r}")
      for name in ("learning_rate", "clip", "last_factor", "momentum") for value in ("0.1", True, None, math.nan, math.inf)),
    *(({"clip_each": value}, rf"train\.clip_each: expected bool, got {value!r}") for value in (1, "true")),
    *(({name: value}, rf"train\.{name}: expected str, got {value!r}")
      for name in ("optimizer", "dtype", "attention") for value in (1, None)),
])
def test_a_training_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        TrainConfig(**changes)


@pytest.mark.parametrize(("changes", "message"), [
    *(({name: "most"}, rf"data\.{name}: expected one of .*, got 'most'") for name in ("vocabulary", "ties", "unknown")),
    *(({name: value}, rf"data\.{name}: expected str, got {value!r}")
      for name in ("path", "vocabulary", "ties", "unknown") for value in (1, None, True)),
    *(({"minimum_count": value}, rf"data\.minimum_count: expected int, got {value!r}") for value in (1.0, "1", True)),
    *(({"minimum_count": value}, rf"data\.minimum_count: expected 1 or more, got {value}") for value in (0, -1)),
])
def test_data_that_cannot_be(changes, message):
    with pytest.raises(InputError, match=f"^{message}"):
        DataConfig(**changes)


@pytest.mark.parametrize("changes", [
    *({"dropout": value} for value in (0, 0.999)), *({"span_initial": value} for value in (0, 1)), {"cutoffs": ()},
    {"cutoffs": [10, 20], "divisor": 2}, {"cutoffs": (10, 10), "divisor": 2}, {"cutoffs": (100,)}, {"cutoffs": (1,)},
    *({"positions": value} for value in POSITIONS), *({"norm": value} for value in NORMS),
    *({"cluster_order": value} for value in CLUSTER_ORDERS), {"heads": 8}, {"heads": 1}, {"span": np.int32(5)},
    {"span_penalty": np.float32(0.5)}, {"span_penalty": 1}, {"memory": 0, "feed_forward": 4}, {"memory": 0},
], ids=str)
def test_a_model_on_the_edge_of_what_can_be(changes):
    config = ModelConfig(**{**MEMORY, **changes})
    assert config.variant == ("all-attention" if config.memory else "transformer")
    for name, value in changes.items():
        held = getattr(config, name)
        assert held == (tuple(value) if isinstance(value, list) else value)
        assert type(held) in (int, float, str, bool, tuple)
    for name in ("dropout", "span_penalty", "span_initial"):
        assert type(getattr(config, name)) is float


@pytest.mark.parametrize("changes", [
    *({"optimizer": value} for value in OPTIMIZERS), *({"dtype": value} for value in DTYPES), {"momentum": 0},
    *({"attention": value} for value in ATTENTIONS),
    {"adam_betas": [0, 0.5]}, {"learning_rate": 0}, {"clip": 0}, {"warm_up": 0}, {"workers": 0}, {"keep_checkpoints": 1},
], ids=str)
def test_a_training_on_the_edge_of_what_can_be(changes):
    config = TrainConfig(**changes)
    assert {**asdict(config), **changes, "adam_betas": config.adam_betas} == asdict(config)


@pytest.mark.parametrize("changes", [
    *({"vocabulary": value} for value in VOCABULARIES), *({"ties": value} for value in TIES),
    *({"unknown": value} for value in UNKNOWNS),
], ids=str)
def test_data_of_every_kind(changes):
    assert {**asdict(DataConfig(**changes)), **changes} == asdict(DataConfig(**changes))


def test_configurations_are_frozen_and_can_be_keys():
    for config in (ModelConfig(**CLUSTERS), TrainConfig(), DataConfig()):
        with pytest.raises(FrozenInstanceError):
            config.seed = 5
        assert {config: 1}[replace(config)] == 1


def test_the_widths_and_clusters_that_follow():
    config = ModelConfig(**CLUSTERS)
    assert config.head_width == 4
    assert config.clusters == ((0, 10, 8), (10, 20, 4), (20, 100, 2))
    assert ModelConfig(**MEMORY).clusters == ()


@pytest.mark.parametrize(("text", "value"), [(".5", 0.5), ("5e-1", 0.5), ("1e-3", 0.001)])
def test_numbers_that_are_not_toml_are_numbers_all_the_same(text, value):
    assert settings.override({}, [f"train.learning_rate={text}"])["train"] == {"learning_rate": value}
