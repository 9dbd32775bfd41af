"""What `train` was asked for becomes a run: settings, a text and a model brought together."""

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from refimpl import accounting, checkpoint, locks, room, runs, settings
from refimpl.arrays import Place
from refimpl.bench import bench as measure
from refimpl.blas import this_machine
from refimpl.computing import device_of
from refimpl.config import DataConfig, ModelConfig, TrainConfig
from refimpl.datasets.batches import Batches
from refimpl.datasets.corpus import Corpus, absolute, open_corpus, with_defaults
from refimpl.device import graphs
from refimpl.device.ledger import ledger as count_asked
from refimpl.device.opening import on_host
from refimpl.errors import InputError
from refimpl.evaluation import Evaluation
from refimpl.protocols import settle
from refimpl.ranks import ALONE, Ranks
from refimpl.results import run_data, score, unit_of, vocabulary_of
from refimpl.running import Evaluate

BYTES = 256


@dataclass(frozen=True)
class Request:
    """What `train` was asked for; None = not said."""

    preset: str | None
    config_file: Path | None
    data_path: str | None
    vocabulary: str | None
    assignments: tuple[str, ...]
    out: Path | None
    store: Path
    device: str = "cpu"
    place: Place = on_host
    tf32: bool = False
    cuda_graph: bool = False


class Opened(NamedTuple):
    """A run ready to train, the name of its tokens, and the validation that it does along the way."""

    run: runs.Run
    unit: str
    evaluate: Evaluate


def dry_run(request: Request) -> dict[str, Any]:
    """What the run would take. The vocabulary's size is the data's where data is named, else the settings'."""
    tables = _tables(request)
    data = DataConfig(**tables["data"])
    if request.data_path or "vocabulary" not in tables["model"]:
        corpus = open_corpus(data, request.store)
        tables["model"]["vocabulary"] = corpus.vocabulary.size
    config, train_config = settings.model_config(tables["model"]), TrainConfig(**tables["train"])
    available, count = room.of(request.device)
    shortages = {when: room.shortage(config, train_config, share, available, count)
                 for when, share in (("full_span", 1.0), ("span_initial", config.span_initial))}
    return {"name": _name(request), "data": {"path": data.path, **data.conventions},
            **accounting.describe(config, train_config, count), "available_memory": available,
            "shortage": {when: told or None for when, told in shortages.items()}}


def bench(request: Request, repeats: int) -> dict[str, Any]:
    """The result of `bench`: a vocabulary of 256 where the settings name none, and no text is read."""
    tables = _given(request)
    tables["model"].setdefault("vocabulary", BYTES)
    config, train_config = settings.model_config(tables["model"]), TrainConfig(**tables["train"])
    _check_device(request, config, train_config)
    measured = measure(config, train_config, repeats, request.place, request.cuda_graph)
    return {"name": _name(request), "processor": this_machine(request.store).processor, "tf32": request.tf32,
            "cuda_graph": request.cuda_graph, **measured}


def ledger(request: Request) -> dict[str, Any]:
    """The result of `bench --ledger`: what an update asks of a GPU."""
    tables = _given(request)
    tables["model"].setdefault("vocabulary", BYTES)
    config, train_config = settings.model_config(tables["model"]), TrainConfig(**tables["train"])
    return {"name": _name(request), **count_asked(config, train_config)}


def open_run(request: Request, resume: bool, ranks: Ranks = ALONE) -> Opened:
    """The run, begun or resumed. Raises InputError, before anything is written, for whatever does not fit.

    Each of several ranks calls it, the first one before others; that one locks and writes.
    """
    if resume:
        return _resumed(request, ranks)
    tables = _tables(request)
    folder = request.out or Path("runs") / _name(request)
    if ranks.rank == 0:
        runs.check_free(folder)
    if request.preset and "vocabulary" in tables["model"] and "path" not in tables["data"]:
        raise InputError(f"preset {request.preset}: expected --data with its text, got none (`--data sample` is built in)")
    asked = settings.override({}, request.assignments)["model"].get("vocabulary")
    train_config, data = TrainConfig(**tables["train"]), absolute(DataConfig(**tables["data"]))
    # wrong settings are told before a long text is read; cutoffs must wait for its vocabulary
    settings.model_config({**tables["model"], "vocabulary": 2**31})
    corpus = open_corpus(data, request.store)
    size = corpus.vocabulary.size
    if asked not in (None, size):
        raise InputError(f"model.vocabulary: expected {size}, the size of the text's vocabulary, got {asked}")
    config = settings.model_config({**tables["model"], "vocabulary": size})
    batches = _batches(corpus, train_config)
    _check_validation(corpus)
    room.check(config, train_config, config.span_initial, *room.of(request.device, ranks))
    _check_device(request, config, train_config)
    run = runs.begin(folder, config, train_config, data, batches, corpus.vocabulary.to_json(), corpus.sha256,
                     ranks)
    return _opened(run, corpus, request)


def later_shortage(saved: checkpoint.Checkpoint, device: str, ranks: Ranks = ALONE) -> str:
    """What to tell of a run that fits as it begins but not with every span full; "" if it does, or if spans are fixed."""
    adaptive = saved.config.adaptive_span
    return room.shortage(saved.config, saved.train_config, 1.0, *room.of(device, ranks)) if adaptive else ""


def _check_validation(corpus: Corpus) -> None:
    if len(corpus.valid) < 2:
        raise InputError(f"{corpus.source}, valid: expected 2 tokens or more to validate on, got {len(corpus.valid)}")


def _resumed(request: Request, ranks: Ranks) -> Opened:
    folder = request.out or Path("runs") / _name(request)
    if (folder / checkpoint.MANIFEST).exists():
        raise InputError(f"{folder}: expected a run's folder to go on with, got a checkpoint's")
    with ExitStack() as held:
        # first of all: what another process is writing is not to be read, and a folder that is no run not to be touched
        is_run = (folder / "checkpoints").is_dir() or (folder / "config.toml").is_file()
        unlocked = locks.hold(folder, held) if is_run and ranks.rank == 0 else ""
        opened = _gone_on_with(request, folder, ranks)
        opened.run.held, opened.run.unlocked = held.pop_all(), unlocked
        return opened


def _gone_on_with(request: Request, folder: Path, ranks: Ranks) -> Opened:
    given = _given(request) if request.preset or request.config_file else settings.override({}, request.assignments)
    if request.preset and not settings.override({}, request.assignments)["model"].get("vocabulary"):
        given["model"].pop("vocabulary", None)  # a preset's gives way to the text's
    if request.vocabulary:
        given["data"]["vocabulary"] = request.vocabulary
    given["data"].pop("path", None)  # the text may have moved: it is held to its SHA-256
    if (folder / "config.toml").is_file() and not checkpoint.folders(folder):
        saved, corpus, batches, data = _before_the_first_checkpoint(request, folder, ranks)
        runs.changed(saved, data, given)
    else:
        saved = checkpoint.load(folder)
        room.check(saved.config, saved.train_config, _longest_span(saved), *room.of(request.device, ranks))
        data = absolute(run_data(folder, saved, request.data_path))
        runs.changed(saved, data, given)
        corpus = open_corpus(data, request.store, vocabulary_of(saved))
        batches = _batches(corpus, saved.train_config)
    _check_device(request, saved.config, runs.changed(saved, data, given))
    before, now = device_of(saved.progress.get("computing", {})), device_of({"device": request.device, "tf32": request.tf32})
    run = runs.resume(folder, saved, given, data, batches, corpus.sha256, ranks)
    if before != now:
        run.moved = "; ".join(filter(None, (run.moved, f"device {before} before, {now} now")))
    return _opened(run, corpus, request)


def _before_the_first_checkpoint(
    request: Request, folder: Path, ranks: Ranks
) -> tuple[checkpoint.Checkpoint, Corpus, Batches, DataConfig]:
    """The start of a run that ended early: its settings decide it."""
    tables = settings.read(folder / "config.toml")
    data = absolute(DataConfig(**{**tables["data"], **({"path": request.data_path} if request.data_path else {})}))
    corpus, config = open_corpus(data, request.store), settings.model_config(tables["model"])
    if corpus.vocabulary.size != config.vocabulary:
        raise InputError(f"{corpus.source}: expected a text of {config.vocabulary} symbols as in {folder / 'config.toml'}, "
                         f"got {corpus.vocabulary.size}")
    train_config = TrainConfig(**tables["train"])
    batches = _batches(corpus, train_config)
    saved = runs.first(config, train_config, data, batches, corpus.vocabulary.to_json(), corpus.sha256, ranks)
    return saved, corpus, batches, data


def _batches(corpus: Corpus, train_config: TrainConfig) -> Batches:
    return Batches(corpus.train, train_config.batch, train_config.block, train_config.seed)


def _check_device(request: Request, config: ModelConfig, train_config: TrainConfig) -> None:
    if request.tf32 and train_config.dtype != "float32":
        raise InputError(f"--tf32: expected train.dtype float32, got {train_config.dtype}")
    if request.cuda_graph:
        graphs.check(train_config, request.device)
    if request.device != "cpu" and train_config.on_nonfinite == "skip":
        raise InputError(f"train.on_nonfinite: expected stop with --device {request.device}, where no update waits to be "
                         "looked at, got skip")


def _longest_span(saved: checkpoint.Checkpoint) -> float:
    """The largest ρ of all heads, 1 where spans are fixed."""
    rho = [saved.parameters[f"layers.{layer}.attention.span"] for layer in range(saved.config.layers)
           if saved.config.adaptive_span]
    return max(float(each.max()) for each in rho) if rho else 1.0


def _opened(run: runs.Run, corpus: Corpus, request: Request) -> Opened:
    saved = run.saved
    saved.move(request.place)
    if request.device != "cpu":
        saved.progress["computing"] |= {"device": request.device, **({"tf32": True} if request.tf32 else {})}
    if request.cuda_graph:
        saved.optimizer.graph = graphs.Graph()

    def validate(stop: Callable[[], bool]) -> Evaluation:
        start = corpus.valid[: saved.train_config.evaluate_tokens or None]
        protocol = settle("every-token", unit_of(corpus.vocabulary), saved.config, saved.train_config.block)
        return score(saved.parameters, saved.config, start, corpus.vocabulary, protocol, stop=stop, ranks=run.ranks)

    return Opened(run, unit_of(corpus.vocabulary), validate)


def _given(request: Request) -> settings.Tables:
    """The settings of the file or the preset, the default one if neither was named, and the assignments."""
    if request.preset and request.config_file:
        raise InputError("--preset and --config: expected one of them, got both")
    base = settings.read(request.config_file) if request.config_file else settings.preset(request.preset or "laptop")
    return settings.override(base, request.assignments)


def _tables(request: Request) -> settings.Tables:
    """All that was asked for, in the form of a settings file."""
    tables = _given(request)
    if request.data_path:
        tables["data"]["path"] = request.data_path
    if request.vocabulary:
        tables["data"]["vocabulary"] = request.vocabulary
    tables["data"] = with_defaults(tables["data"])
    return tables


def _name(request: Request) -> str:
    return request.config_file.stem if request.config_file else request.preset or "laptop"
