"""Checkpoints: what is saved is loaded, bit for bit; what is not whole is refused; a failed save harms nothing."""

import errno
import hashlib
import json
import os
import pathlib
import pickle
import shutil
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import load as from_bytes
from safetensors.numpy import save as to_bytes

from refimpl import checkpoint, durable, optimizers, parameters
from refimpl.config import ModelConfig, TrainConfig
from refimpl.errors import InputError

CONFIG = ModelConfig(vocabulary=11, width=8, heads=2, layers=1, span=8, memory=2, dropout=0.25)
TRAIN = TrainConfig(batch=2, block=8, updates=40)
VOCABULARY = {"kind": "character", "symbols": list("\n abcdefgä📓"), "unknown": "error"}
FILES = ("checkpoint.json", "optimizer.safetensors", "parameters.safetensors", "past.safetensors", "vocabulary.json")
PLACES = 20
SYSTEM_CALLS = ((durable, "written"), (os, "fsync"), (os, "open"), (os, "rename"), (os, "replace"), (os, "mkdir"),
                (pathlib.Path, "open"), (pathlib.Path, "rename"), (pathlib.Path, "mkdir"))


@pytest.fixture
def make():
    """make(updates=7): a checkpoint of random numbers, different for each `updates` and seed."""

    def build(updates=7, seed=0, config=CONFIG, train_config=TRAIN):
        rng = np.random.default_rng([updates, seed])
        p = parameters.initialize(config, seed, train_config.dtype)
        state = optimizers.initialize(train_config, p)
        state.updates = updates
        for accumulator in state.accumulators.values():
            accumulator.vector[...] = rng.exponential(size=accumulator.vector.shape)  # squares are not negative
        p.vector[...] = rng.standard_normal(p.vector.shape)
        past = rng.standard_normal((config.layers, train_config.batch, 5, config.width)).astype(train_config.dtype)
        progress = {"tokens": 16 * updates, "seconds": 0.1 + updates / 3, "batches": {"position": 24, "passes": 1},
                    "text_sha256": "ab" * 32}
        return checkpoint.Checkpoint(config, train_config, p, state, progress, past, VOCABULARY)

    return build


@pytest.fixture
def saved(make, tmp_path):
    """The folder of one saved checkpoint."""
    return checkpoint.save(tmp_path / "run", make())


def assert_same(one, other):
    assert one.config == other.config
    assert one.train_config == other.train_config
    assert one.progress == other.progress
    assert one.vocabulary == other.vocabulary
    assert list(one.parameters) == list(other.parameters)
    assert one.optimizer.updates == other.optimizer.updates
    assert list(one.optimizer.accumulators) == list(other.optimizer.accumulators)
    vectors = [(one.parameters.vector, other.parameters.vector), (one.past, other.past)]
    vectors += [(one.optimizer.accumulators[name].vector, other.optimizer.accumulators[name].vector)
                for name in one.optimizer.accumulators]
    for a, b in vectors:
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def sign(folder, change=lambda manifest: None, **files):
    """Puts files into a checkpoint, or changes its manifest, with checksums that fit, as another writer would."""
    manifest = json.loads((folder / "checkpoint.json").read_text("utf-8"))
    for stem, content in files.items():
        name = f"{stem}.safetensors"
        (folder / name).write_bytes(content)
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    del manifest["sha256"]
    change(manifest)
    manifest["sha256"] = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
    (folder / "checkpoint.json").write_text(json.dumps(manifest, indent=1), "utf-8")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("optimizer", [{"optimizer": "sgd"}, {"optimizer": "sgd", "momentum": 0.9},
                                       {"optimizer": "adagrad", "clip_each": True},
                                       {"optimizer": "adam", "adam_betas": (0.8, 0.99)}],
                         ids=["sgd", "momentum", "adagrad", "adam"])
def test_a_round_trip_keeps_every_bit(make, tmp_path, dtype, optimizer):
    made = make(train_config=replace(TRAIN, dtype=dtype, **optimizer))
    folder = checkpoint.save(tmp_path / "run", made)
    assert folder == tmp_path / "run" / "checkpoints" / "update-00000007"
    loaded = checkpoint.load(folder)
    assert_same(loaded, made)
    assert loaded.path == folder
    assert loaded.passed_over == []
    names = {"sgd": [], "adagrad": ["squares"], "adam": ["mean", "squares"]}
    expected = ["momentum"] if "momentum" in optimizer else names[optimizer["optimizer"]]
    assert list(loaded.optimizer.accumulators) == expected


def test_special_numbers_survive(make, tmp_path):
    made = make()
    odd = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, np.finfo("float32").tiny / 4, np.finfo("float32").max], "float32")
    made.parameters.vector[: len(odd)] = odd
    assert_same(checkpoint.load(checkpoint.save(tmp_path, made)), made)


@pytest.mark.parametrize("config", [
    replace(CONFIG, memory=0, feed_forward=12, attend_self=True, norm="pre", share_positions=False),
    replace(CONFIG, cutoffs=(4, 7), divisor=2, tie_tables=True, tie_projections=True, cluster_order="reversed"),
    replace(CONFIG, layers=3, adaptive_span=False, positions="none", zero_past=True, span_penalty=1e-7),
], ids=["baseline", "clusters", "deep"])
def test_models_of_every_kind(make, tmp_path, config):
    assert_same(checkpoint.load(checkpoint.save(tmp_path, make(config=config))), make(config=config))


def test_without_past_and_vocabulary(make, tmp_path):
    folder = checkpoint.save(tmp_path, replace(make(), past=None, vocabulary=None))
    assert sorted(path.name for path in folder.iterdir()) == list(FILES[:3])
    loaded = checkpoint.load(folder)
    assert loaded.past is None
    assert loaded.vocabulary is None


def test_to_use_a_model_past_and_accumulators_stay_on_the_disk(make, tmp_path):
    made = make()
    made.past = np.ones((CONFIG.layers, TRAIN.batch, 2**19, CONFIG.width), "float32")
    folder = checkpoint.save(tmp_path, made)
    tracemalloc.start()
    loaded = checkpoint.load(folder, to_train=False)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < made.past.nbytes / 2
    assert loaded.parameters.vector.tobytes() == made.parameters.vector.tobytes()
    assert (loaded.past, loaded.optimizer.accumulators, loaded.optimizer.updates) == (None, {}, 7)


@pytest.mark.parametrize("name", ["optimizer.safetensors", "past.safetensors"])
@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: content + b"?",
                                    lambda content: content[:-1] + bytes([content[-1] ^ 1])], ids=["short", "long", "other"])
def test_what_stays_on_the_disk_is_held_to_its_checksum(saved, name, damage):
    (saved / name).write_bytes(damage((saved / name).read_bytes()))
    with pytest.raises(InputError) as to_train:
        checkpoint.load(saved)
    with pytest.raises(InputError) as to_use:
        checkpoint.load(saved, to_train=False)
    assert str(to_use.value) == str(to_train.value)


def test_views_that_are_not_contiguous_are_saved_as_they_read(make, tmp_path):
    made = make()
    made.past = made.past.transpose(0, 1, 3, 2)[..., ::-1].transpose(0, 1, 3, 2)
    assert not made.past.flags.c_contiguous
    assert checkpoint.load(checkpoint.save(tmp_path, made)).past.tolist() == made.past.tolist()


def test_what_is_loaded_can_be_changed_and_trained(saved):
    loaded = checkpoint.load(saved)
    loaded.parameters.vector += 1
    loaded.past += 1
    g = loaded.parameters.zeros_like()
    g.vector[...] = 0.5
    optimizers.update(loaded.parameters, g, loaded.optimizer, TRAIN)
    assert loaded.optimizer.updates == 8
    assert loaded.parameters["layers.0.attention.span"].base is not None


def test_only_safetensors_and_json_are_written(saved):
    assert sorted(path.name for path in saved.iterdir()) == list(FILES)
    for path in saved.iterdir():
        content = path.read_bytes()
        if path.suffix == ".json":
            json.loads(content)
        else:
            size = int.from_bytes(content[:8], "little")  # safetensors: a header's size, a header of JSON, numbers
            for entry in json.loads(content[8 : 8 + size]).values():
                assert set(entry) == {"dtype", "shape", "data_offsets"}


@pytest.mark.parametrize("stem", ["parameters", "optimizer", "past"])
def test_a_pickle_is_refused_and_never_run(saved, tmp_path, stem):
    class Intruder:
        def __reduce__(self):
            return (pathlib.Path.touch, (tmp_path / "intruder",))

    for content in (pickle.dumps(Intruder()), b"\x93NUMPY\x01\x00" + pickle.dumps(Intruder())):
        sign(saved, **{stem: content})
        with pytest.raises(InputError, match="expected safetensors"):
            checkpoint.load(saved)
    assert not (tmp_path / "intruder").exists()


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_refused(saved, name):
    content = (saved / name).read_bytes()
    rng = np.random.default_rng([20, *name.encode()])
    for place, mask in zip(rng.choice(len(content), PLACES, replace=False), rng.integers(1, 256, PLACES), strict=True):
        altered = bytearray(content)
        altered[place] ^= mask
        (saved / name).write_bytes(altered)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            checkpoint.load(saved)
    (saved / name).write_bytes(content)
    checkpoint.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_longer_file_is_refused(saved, name):
    content = (saved / name).read_bytes()
    for altered in (b"", content[:1], content[: len(content) // 2], content[:-1], content + b"\0"):
        (saved / name).write_bytes(altered)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            checkpoint.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_refused(saved, name):
    (saved / name).unlink()
    with pytest.raises(InputError, match="expected"):
        checkpoint.load(saved)


@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_a_files_place_is_refused(saved, name):
    (saved / name).unlink()
    (saved / name).mkdir()
    with pytest.raises(InputError, match="expected"):
        checkpoint.load(saved)


def test_files_of_two_checkpoints_do_not_mix(make, tmp_path):
    older, newer = (checkpoint.save(tmp_path, make(updates)) for updates in (7, 8))
    for name in FILES[1:4]:
        content = (newer / name).read_bytes()
        shutil.copy(older / name, newer / name)
        with pytest.raises(InputError, match=name.replace(".", r"\.")):
            checkpoint.load(newer)
        (newer / name).write_bytes(content)
    checkpoint.load(newer)


@pytest.mark.parametrize(("change", "fragment"), [
    (lambda manifest: manifest.update(format=2), "expected format 1, got 2"),
    (lambda manifest: manifest["model"].update(heads=3), "model.heads"),
    (lambda manifest: manifest["model"].update(width=16), "expected float32"),
    (lambda manifest: manifest["train"].update(dtype="float64"), "expected float64"),
    (lambda manifest: manifest["train"].update(optimizer="adagrad", clip_each=True), None),
    (lambda manifest: manifest["model"].update(sparkle=1), "sparkle"),
    (lambda manifest: manifest["train"].update(sparkle=1), "sparkle"),
    (lambda manifest: manifest["model"].pop("width"), "width"),
    (lambda manifest: manifest.pop("model"), "model"),
    (lambda manifest: manifest.pop("format"), "format"),
    (lambda manifest: manifest.pop("files"), "files"),
    (lambda manifest: manifest["files"].pop("parameters.safetensors"), "parameters.safetensors"),
    (lambda manifest: manifest["files"].pop("optimizer.safetensors"), "optimizer.safetensors"),
], ids=["format", "heads", "width", "dtype", "optimizer", "unknown model key", "unknown train key", "no width", "no model",
        "no format", "no files", "no parameters", "no optimizer"])
def test_a_manifest_of_another_writer(saved, change, fragment):
    """Its checksum fits, but it does not mean what it must: another version's, or a hand's."""
    sign(saved, change)
    if fragment is None:  # Adagrad's accumulator has the name of one of Adam's: the optimiser's file has what it needs
        checkpoint.load(saved)
        return
    with pytest.raises(InputError, match=fragment) as error:
        checkpoint.load(saved)
    assert "\n" not in str(error.value)


def test_tensors_of_another_shape_or_name(saved):
    tensors = from_bytes((saved / "parameters.safetensors").read_bytes())
    name = "layers.0.attention.span"
    for changed, came in (({**tensors, name: tensors[name].reshape(1, -1)}, r"got float32 \(1, 2\)"),
                          ({**tensors, name: tensors[name].astype("float64")}, r"got float64 \(2,\)"),
                          ({key: value for key, value in tensors.items() if key != name}, "got nothing")):
        sign(saved, parameters=to_bytes(changed))
        with pytest.raises(InputError, match=came):
            checkpoint.load(saved)


def test_a_past_under_another_name(saved):
    sign(saved, past=to_bytes({"present": np.zeros((1, 2, 5, 8), "float32")}))
    with pytest.raises(InputError, match="past"):
        checkpoint.load(saved)


def test_what_is_no_checkpoint(tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    for place in (tmp_path / "nothing", tmp_path / "file", tmp_path, tmp_path / "empty"):
        with pytest.raises(InputError, match="expected a checkpoint") as error:
            checkpoint.load(place)
        assert str(place) in str(error.value)


def test_a_run_loads_its_newest_whole_checkpoint_and_says_what_it_passed_over(make, tmp_path):
    folders = [checkpoint.save(tmp_path, make(updates), keep=9) for updates in (3, 20, 100)]
    assert checkpoint.load(tmp_path).optimizer.updates == 100
    assert checkpoint.load(str(tmp_path)).passed_over == []
    (folders[2] / "past.safetensors").write_bytes(b"")
    loaded = checkpoint.load(tmp_path)
    assert_same(loaded, make(20))
    assert loaded.path == folders[1]
    assert len(loaded.passed_over) == 1
    assert str(folders[2] / "past.safetensors") in loaded.passed_over[0]
    (folders[1] / "checkpoint.json").unlink()
    loaded = checkpoint.load(tmp_path)
    assert loaded.optimizer.updates == 3
    assert [str(folder) in reason for folder, reason in zip(folders[:0:-1], loaded.passed_over, strict=True)] == [True, True]
    (folders[0] / "parameters.safetensors").unlink()
    with pytest.raises(InputError, match=r"past\.safetensors"):  # of all reasons, the newest checkpoint's
        checkpoint.load(tmp_path)


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_as_many_are_kept_as_asked(make, tmp_path, keep):
    for updates in (1, 5, 10, 11, 200):
        checkpoint.save(tmp_path, make(updates), keep)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["update-00000010", "update-00000011", "update-00000200"][-keep:]


@pytest.mark.parametrize("keep", [1, 2])
def test_what_was_just_saved_is_never_deleted(make, tmp_path, keep):
    """A run resumed from an older checkpoint, the newest being damaged, must keep what it writes."""
    checkpoint.save(tmp_path, make(10), keep)
    damaged = checkpoint.save(tmp_path, make(20), 2)
    (damaged / "parameters.safetensors").write_bytes(b"")
    folder = checkpoint.save(tmp_path, make(15), keep)
    assert folder.is_dir()
    assert_same(checkpoint.load(tmp_path), make(15))


def test_the_same_update_again_replaces_it(make, tmp_path):
    checkpoint.save(tmp_path, make(7, seed=0))
    checkpoint.save(tmp_path, make(7, seed=1))
    assert_same(checkpoint.load(tmp_path), make(7, seed=1))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update-00000007"]


def test_leftovers_of_a_killed_writer_are_ignored(make, tmp_path):
    """Whatever it was killed at: half a folder, under this process's own id too, or one stepped aside."""
    checkpoint.save(tmp_path, make(7))
    parent = tmp_path / "checkpoints"
    for name in (f".update-00000008.{os.getpid()}", ".update-00000008.1", ".update-00000007.old", ".update-00000008.old"):
        (parent / name).mkdir()
        (parent / name / "parameters.safetensors").write_bytes(b"half")
    assert_same(checkpoint.load(tmp_path), make(7))
    assert_same(checkpoint.load(checkpoint.save(tmp_path, make(8))), make(8))
    (parent / ".update-00000008.old").mkdir(exist_ok=True)
    (parent / ".update-00000008.old" / "parameters.safetensors").write_bytes(b"half")
    checkpoint.save(tmp_path, make(8, seed=1))
    assert_same(checkpoint.load(tmp_path), make(8, seed=1))
    assert sorted(path.name for path in parent.iterdir()) == ["update-00000007", "update-00000008"]


def failing(monkeypatch, action, where, calls=SYSTEM_CALLS, number=errno.ENOSPC):
    """The action, with an OSError from each call of the system whose count, from 0, is in `where`: raised?, all calls."""
    count = 0

    def guard(original):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if count - 1 in where:
                raise OSError(number, os.strerror(number))
            return original(*arguments, **keywords)

        return call

    raised = False
    with monkeypatch.context() as patch:
        for owner, name in calls:
            patch.setattr(owner, name, guard(getattr(owner, name)))
        try:
            action()
        except OSError:
            raised = True
    return raised, count


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize(("updates", "keep"), [(8, 2), (8, 1), (7, 2)], ids=["next", "keep one", "same again"])
def test_a_save_that_fails_anywhere_leaves_the_old_checkpoint(make, tmp_path, monkeypatch, updates, keep, number):
    """Every system call of a save fails once, one after the other, until a save needs no more of them."""
    old, new = make(7), make(updates, seed=1)
    for failed in range(100):
        run = tmp_path / str(failed)
        checkpoint.save(run, old)
        raised, calls = failing(monkeypatch, lambda run=run: checkpoint.save(run, new, keep), [failed],
                                number=number)
        loaded = checkpoint.load(run)
        assert loaded.passed_over == []
        whole = [made for made in (old, new) if made.parameters.vector.tobytes() == loaded.parameters.vector.tobytes()]
        assert len(whole) == 1, f"call {failed}"
        assert_same(loaded, whole[0])
        if not raised:
            assert whole == [new], f"call {failed}"
        for folder in (run / "checkpoints").iterdir():
            if folder.name.startswith("."):  # where only the clean-up failed: the next save does it
                assert not raised, f"left behind after call {failed}"
            else:
                checkpoint.load(folder)
        if calls <= failed:
            assert failed > 10
            return
        checkpoint.save(run, new, keep)  # the next try is not in its own way
        assert_same(checkpoint.load(run), new)
    raise AssertionError("no save went through")


@pytest.mark.parametrize("updates", [7, 8])
def test_a_writer_killed_anywhere_loses_nothing(make, tmp_path, monkeypatch, updates):
    """From some system call on nothing works, no clean-up either: a checkpoint can be loaded, and later written again."""
    old, new = make(7), make(updates, seed=1)
    for last in range(100):
        run = tmp_path / str(last)
        checkpoint.save(run, old)
        everything = (*SYSTEM_CALLS, (os, "rmdir"), (os, "unlink"))
        _, calls = failing(monkeypatch, lambda run=run: checkpoint.save(run, new), range(last, 1000), everything)
        loaded = checkpoint.load(run)
        assert loaded.parameters.vector.tobytes() in [made.parameters.vector.tobytes() for made in (old, new)]
        if calls <= last:
            return
        checkpoint.save(run, new)
        assert_same(checkpoint.load(run), new)
    raise AssertionError("no save went through")


def test_an_interrupted_save_leaves_nothing(make, tmp_path, monkeypatch):
    checkpoint.save(tmp_path, make(7))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path, make(8))
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["update-00000007"]


def test_what_is_saved_is_on_the_disk_before_it_is_visible(make, tmp_path, monkeypatch):
    """Each file and both folders are synced, and the folder gets its name after its files and itself are."""
    synced, visible = [], []
    fsync, rename = os.fsync, pathlib.Path.rename

    def remember(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def look(self, target):
        visible.append({path.name: path.stat().st_ino in synced for path in (self, *self.iterdir())})
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", remember)
    monkeypatch.setattr(pathlib.Path, "rename", look)
    folder = checkpoint.save(tmp_path, make(7))
    assert len(visible) == 1
    assert len(visible[0]) == 1 + len(FILES)
    assert all(visible[0].values())
    assert synced[-1] == folder.parent.stat().st_ino
