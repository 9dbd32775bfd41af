"""Round trips through other implementations' names and files, to the last bit, and files that are not what they say."""

import json
import os
import pickle
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

import numpy as np
import published
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from refimpl import convert, parameters
from refimpl.convert import files, sizes, torch_state
from refimpl.errors import InputError

Architecture = published.Architecture
MEMORY, BASELINE = Architecture(), Architecture(memory=0, feed_forward=6, adaptive_span=False)
CLUSTERS = Architecture(cutoffs=(3, 6), tie_tables=True, tie_projections=True)
KINDS = {"memory": MEMORY, "baseline": BASELINE, "clusters": CLUSTERS, "untied": CLUSTERS._replace(tie_tables=False)}


def same(found, expected):
    """Names, shapes, types and bits."""
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert found[name].tobytes() == array.tobytes(), name


@given(published.architectures(), st.integers(0, 9))
@example(MEMORY, 0)
@example(BASELINE, 0)
@example(CLUSTERS, 0)
def test_every_published_architecture_comes_back_to_the_bit_and_tells_its_sizes(of, seed):
    """There and back; and the other way round, from any parameters of ours."""
    given_tensors = published.tensors(of, seed)
    table = sizes.model_table(given_tensors)
    config = of.config()
    assert {key: getattr(config, key) for key in table} == table
    assert {"vocabulary", "width", "layers", "heads", "span", "memory", "feed_forward", "adaptive_span", "cutoffs",
            "tie_tables", "tie_projections"} <= table.keys()
    p = convert.from_adaptive_span(given_tensors, config)
    back = convert.to_adaptive_span(p)
    same(back, given_tensors)
    assert all(array.flags.c_contiguous for array in back.values())
    ours = parameters.initialize(config, seed, of.dtype)
    same(convert.from_adaptive_span(convert.to_adaptive_span(ours), config), dict(ours))


def test_nan_and_signed_zero_keep_their_bits():
    p = parameters.initialize(MEMORY.config(), dtype="float32")
    p.vector.view("u4")[:] = np.random.default_rng(0).integers(0, 2**32, p.vector.size, dtype="u4")
    same(dict(convert.from_adaptive_span(convert.to_adaptive_span(p), p.config)), dict(p))


@pytest.mark.parametrize("kind", KINDS)
def test_files_keep_every_bit(kind, tmp_path):
    expected = published.tensors(KINDS[kind])
    p = convert.from_adaptive_span(expected, KINDS[kind].config())
    files.write_torch(tmp_path / "a.pt", convert.to_adaptive_span(p))
    same(files.read_torch(tmp_path / "a.pt"), expected)
    same({name: t.numpy() for name, t in torch.load(tmp_path / "a.pt", weights_only=True).items()}, expected)
    files.write_safetensors(tmp_path / "a.safetensors", p, {"note": "here"})
    tensors, metadata = files.read_safetensors(tmp_path / "a.safetensors")
    same(tensors, dict(p))
    assert metadata == {"note": "here"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.pt", "a.safetensors"]


@pytest.mark.parametrize("view", [lambda a: a.T, lambda a: a[::-1], lambda a: a[:, ::2], lambda a: a.T[::-1]])
def test_strided_views_are_written_as_what_they_show(view, tmp_path):
    """safetensors alone writes the memory behind a transposed view, and reads back other values, without a word."""
    shown = view(np.arange(12, dtype="float32").reshape(3, 4))
    files.write_safetensors(tmp_path / "a", {"a": shown}, {})
    same(files.read_safetensors(tmp_path / "a")[0], {"a": np.ascontiguousarray(shown)})
    files.write_torch(tmp_path / "b", {"a": shown})
    same(files.read_torch(tmp_path / "b"), {"a": np.ascontiguousarray(shown)})


def test_half_precision_becomes_float32_exactly(tmp_path):
    values = torch.tensor([1.5, -0.0, 3.0e-5, float("inf")])
    torch.save({"h": values.half(), "b": values.bfloat16(), "list": [values], "n": 3}, tmp_path / "a.pt")
    read = files.read_torch(tmp_path / "a.pt")
    assert read["n"] == 3
    same({"h": read["h"], "b": read["b"], "list": read["list"][0]},
         {"h": values.half().float().numpy(), "b": values.bfloat16().float().numpy(), "list": values.numpy()})


class Bomb:
    """Makes a folder when it is unpickled, if it is."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (self.mark,)


@pytest.mark.parametrize("write", [lambda bomb, path: torch.save({"model": bomb}, path),
                                   lambda bomb, path: path.write_bytes(pickle.dumps(bomb)),
                                   lambda bomb, path: torch.save(bomb, path, _use_new_zipfile_serialization=False)])
def test_a_file_that_would_run_code_is_refused_and_runs_nothing(write, tmp_path):
    mark = tmp_path / "exploded"
    write(Bomb(str(mark)), tmp_path / "bomb.pt")
    with pytest.raises(InputError, match=r"bomb\.pt: expected a PyTorch file of tensors and plain values alone") as error:
        files.read_torch(tmp_path / "bomb.pt")
    assert "\n" not in str(error.value)
    assert "False" not in str(error.value)  # PyTorch's advice, which would run it
    assert not mark.exists()
    with suppress(RuntimeError, ValueError, AttributeError):  # what it leads to is no checkpoint
        torch.load(tmp_path / "bomb.pt", weights_only=False)
    assert mark.exists()  # the bomb is a live one


def test_files_that_are_none_are_refused_in_one_line(tmp_path):
    (tmp_path / "text").write_text("not a checkpoint\nat all\n")
    (tmp_path / "empty").write_bytes(b"")
    around = []
    around.append(around)
    (tmp_path / "circle").write_bytes(pickle.dumps({"model": around}, protocol=2))
    torch.save(torch.eye(3).to_sparse(), tmp_path / "sparse")
    for name in ("text", "empty", "circle", "sparse", "absent", "."):
        with pytest.raises(InputError) as error:
            files.read_torch(tmp_path / name)
        assert "\n" not in str(error.value)
    for name in ("text", "empty", "absent"):
        with pytest.raises(InputError) as error:
            files.read_safetensors(tmp_path / name)
        assert "\n" not in str(error.value)


def test_types_that_are_not_ours_are_named(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2).bfloat16()}, tmp_path / "b")
    save_file({"a": torch.ones(2).half(), "b": torch.ones(2)}, tmp_path / "h")
    for name in "bh":
        with pytest.raises(InputError, match="float32 or float64"):
            files.read_safetensors(tmp_path / name)


def test_an_existing_file_is_never_overwritten(tmp_path):
    (tmp_path / "a").write_text("mine")
    for write in (lambda: files.write_torch(tmp_path / "a", {}), lambda: files.write_safetensors(tmp_path / "a", {}, {})):
        with pytest.raises(InputError, match="expected a new file's name"):
            write()
    assert (tmp_path / "a").read_text() == "mine"


def test_without_pytorch_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    with pytest.raises(InputError, match=r"pip install 'refimpl\[convert\]'"):
        files.read_torch(tmp_path / "a.pt")


def test_what_nothing_tells_is_left_out_and_strangers_are_refused():
    tensors = published.tensors(BASELINE)
    del tensors["key_pe"]
    table = sizes.model_table(tensors)
    assert not {"heads", "span"} & table.keys()
    assert table["positions"] == "none"
    masked = published.tensors(Architecture(memory=0, feed_forward=6))
    del masked["key_pe"]
    assert {key: sizes.model_table(masked)[key] for key in ("heads", "span")} == {"heads": 2, "span": 5}
    with pytest.raises(InputError, match=r"expected tensors under the names .*, got conv1\.weight"):
        sizes.model_table({"conv1.weight": np.zeros(1)})
    far = {**published.tensors(MEMORY), "layers.987654321.norm1.weight": np.zeros(8)}
    assert sizes.model_table(far)["layers"] == 3  # not a model of a thousand million layers
    with pytest.raises(InputError, match="key_pe: expected 3 dimensions"):
        sizes.model_table({**tensors, "key_pe": np.zeros((4, 5))})


def test_one_tied_cluster_of_two_is_not_a_tie():
    tensors = published.tensors(CLUSTERS)
    tensors["out_emb.out_layers.1.weight"] = tensors["out_emb.out_layers.1.weight"] + 1
    table = sizes.model_table(tensors)
    assert (table["tie_tables"], table["tie_projections"]) == (False, True)


class Registered(torch.nn.Module):
    """The tensors of a state dict as modules, registered in its order, so that PyTorch itself numbers them."""

    @classmethod
    def of(cls, tensors):
        root, made = cls(), {}
        for name, array in tensors.items():
            *path, last = name.split(".")
            owner = root
            for part in path:
                if part not in owner._modules:
                    owner.add_module(part, cls())
                owner = owner._modules[part]
            if last == "mask_template":
                owner.register_buffer(last, torch.from_numpy(array.copy()))
            else:
                parameter = torch.nn.Parameter(torch.from_numpy(array.copy()))
                owner.register_parameter(last, made.setdefault(id(array), parameter))
        return root


OPTIMIZERS = {"adagrad": lambda p: torch.optim.Adagrad(p, lr=0.07), "adam": lambda p: torch.optim.Adam(p, lr=2.5e-4)}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizers_state_finds_its_parameters(kind, optimizer, tmp_path):
    """By PyTorch's own numbering of a model whose tied tensors are shared; gradients g make Adagrad's sum g²."""
    network = Registered.of(published.tensors(KINDS[kind]))
    order = [name for name, _ in network.named_parameters()]
    made = OPTIMIZERS[optimizer](network.parameters())
    rng = np.random.default_rng(1)
    gradients = {name: torch.from_numpy(rng.standard_normal(parameter.shape).astype("float32"))
                 for name, parameter in network.named_parameters()}
    for _ in range(3):
        for name, parameter in network.named_parameters():
            parameter.grad = gradients[name].clone()
        made.step()
    torch.save({"model": network.state_dict(), "optimizer": made.state_dict()}, tmp_path / "a.pt")
    read = files.read_torch(tmp_path / "a.pt")
    config = KINDS[kind].config()
    assert torch_state.parameter_order(list(read["model"]), config) == order
    state = torch_state.read(read["optimizer"], read["model"], config)
    assert (state.kind, state.updates) == (optimizer, 3)
    assert state.train["learning_rate"] == {"adagrad": 0.07, "adam": 2.5e-4}[optimizer]
    for ours, theirs in torch_state.KINDS[optimizer].items():
        held = {name: made.state[p][theirs].numpy() for name, p in network.named_parameters()}
        same(state.accumulators[ours], dict(convert.from_adaptive_span(held, config)))


def state_of(tensors, **changes):
    each = {i: {"step": 2, "sum": np.ones_like(a)} for i, a in enumerate(tensors.values())}
    return {"state": each, "param_groups": [{"lr": 0.1, "params": list(each), **changes}]}


def test_an_optimizers_state_that_does_not_fit_is_refused():
    config = BASELINE.config()
    tensors = published.tensors(BASELINE)
    assert torch_state.read(state_of(tensors), tensors, config).updates == 2
    assert torch_state.read(state_of(tensors, eps=1e-10, lr_decay=0, maximize=False), tensors, config).updates == 2
    turned = OrderedDict(reversed(tensors.items()))
    wrong = [
        (state_of(turned), "expected float32"), ({}, "param_groups of one group"), (None, "param_groups"),
        (state_of(tensors, params=[0, 1]), "expected the state of 28 parameters in one group, got a group of 2"),
        (state_of(tensors, params=[[0]]), "param_groups"),
        (state_of(tensors, weight_decay=0.1), "weight_decay: expected none, got 0.1"),
        (state_of(tensors, lr_decay=1e-3), r"lr_decay: expected none, got 0.001 \(--no-optimizer leaves the state\)"),
        (state_of(tensors, maximize=True), "maximize: expected none, got True"),
        (state_of(tensors, eps=1e-8), r"eps: expected 1e-10, got 1e-08 \(--no-optimizer"),
        (state_of(tensors, eps="small"), "eps: expected a number, got 'small'"),
        (state_of(tensors, lr="fast"), "lr: expected a number, got 'fast'"),
        (state_of(tensors, lr=float("nan")), "lr: expected a number, got 'nan'"),
    ]
    uneven, other = state_of(tensors), state_of(tensors)
    uneven["state"][3]["step"] = 5
    for step in (float("nan"), float("inf")):
        endless = state_of(tensors)
        endless["state"][3]["step"] = step
        wrong.append((endless, f"step: expected a number, got '{step}'"))
    adam = state_of(tensors, betas=0.9)
    adam["state"] = {i: {"step": 2, "exp_avg": each["sum"], "exp_avg_sq": each["sum"]} for i, each in adam["state"].items()}
    wrong.append((adam, "betas: expected two numbers, got '0.9'"))
    wrong.append(({**adam, "param_groups": [{**adam["param_groups"][0], "eps": 1e-10}]}, "eps: expected 1e-08, got 1e-10"))
    other["state"] = {i: {"square_avg": 1} for i in other["state"]}
    two = state_of(tensors)
    two["param_groups"] *= 2
    wrong += [(uneven, r"one count of updates, the same for all parameters, got \[2, 5\]"),
              (other, "Adagrad .* got square_avg"), (two, "param_groups of one group")]
    for entry, message in wrong:
        with pytest.raises(InputError, match=message):
            torch_state.read(entry, tensors, config)


def test_metadata_that_is_no_json_is_named():
    assert files.parsed(Path("a"), {"config": json.dumps([1])}, "config") == [1]
    assert files.parsed(Path("a"), {}, "config") is None
    with pytest.raises(InputError, match="a: expected JSON as metadata config"):
        files.parsed(Path("a"), {"config": "{"}, "config")
