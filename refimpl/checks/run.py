"""Gradient checks by name, and running them: pairs, forms of the model, presets, TOML files, a user's own."""

import difflib
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from refimpl import settings
from refimpl.arrays import Array, Place, random_stream, to_host
from refimpl.checks import attentions, models, pairs
from refimpl.checks.pairs import Pair, with_tiles
from refimpl.config import ModelConfig
from refimpl.device.opening import on_host
from refimpl.errors import CalledFailedError, InputError
from refimpl.gradcheck import GradcheckError, Report, check_vjp

ALL, TILED = "all", "-tiled"
PLACEHOLDER = 256  # the vocabulary of a preset that takes its text's; scaled down with the rest


class Options(NamedTuple):
    """How a check is made; method and directions as gradcheck.check_vjp takes them, size as the pairs' builders."""

    method: str = "complex-step"
    dtype: str = "float64"
    seed: int = 0
    size: int = 3
    directions: str | int = "full"
    device: str = "cpu"


class Check(NamedTuple):
    """One check: its name, whether it is of a "pair", a "model" or the user's ("mine"), and what makes it."""

    name: str
    kind: str
    build: Callable[[Options], Pair]


class Outcome(NamedTuple):
    """A check and its report; kinks as the pair has them."""

    check: Check
    report: Report
    kinks: str

    @property
    def done(self) -> bool:
        """Whether nothing is left open; on a kink on purpose there is no gradient, and among the slopes is right."""
        return self.report.ok or (self.report.verdict == "KINK" and self.kinks == "bracket")


def pair_checks() -> dict[str, Check]:
    """Every pair of the layers by name; attentions also in tiles, the adaptive softmax also in chunks."""
    of_pairs, of_attentions = (
        {name.removeprefix("of_").replace("_", "-"): builder for name, builder in vars(module).items() if name[:3] == "of_"}
        for module in (pairs, attentions))
    checks = {name: Check(name, "pair", _of_pair(name, builder)) for name, builder in (of_pairs | of_attentions).items()}
    return _and_in_tiles(checks, [*of_attentions, "adaptive-softmax"])


def model_checks() -> dict[str, Check]:
    """Every form of the whole model by name: variants, positions, conventions; also in tiles."""
    checks = {name: Check(name, "model", _of_model(name, config)) for name, config in models.forms().items()}
    return _and_in_tiles(checks, checks)


def _and_in_tiles(checks: Mapping[str, Check], names: Iterable[str]) -> dict[str, Check]:
    """The checks, after each of these names the same in tiles or chunks."""
    found = {}
    for name, check in checks.items():
        found[name] = check
        if name in names:
            found[name + TILED] = Check(name + TILED, check.kind, _in_tiles(check.build))
    return found


def _in_tiles(build: Callable[[Options], Pair]) -> Callable[[Options], Pair]:
    return lambda options: with_tiles(build(options))


def select(what: str) -> list[Check]:
    """The checks of this name: a pair, a form of the model, both, a preset, a TOML file, or all pairs and forms.

    What has an attention is checked in tiles, too. Raises InputError, with the nearest name, if there is none.
    """
    of_pairs, of_models, presets = pair_checks(), model_checks(), settings.preset_names()
    if what == ALL:
        return [*of_pairs.values(), *of_models.values()]
    found = [checks[name] for checks in (of_pairs, of_models) for name in (what, what + TILED) if name in checks]
    if found:
        return found
    if what in presets:
        return _of_settings(what, settings.preset(what))
    if what.endswith(".toml"):
        return _of_settings(Path(what).stem, settings.read(Path(what)))
    known = [ALL, *dict.fromkeys([*of_pairs, *of_models, *presets])]
    nearest = difflib.get_close_matches(what, known, 1)
    hint = f"; did you mean {nearest[0]}?" if nearest else ""
    raise InputError(f"gradcheck: expected a TOML file or one of {', '.join(known)}, got {what!r}{hint}")


def mine(reference: str) -> Check:
    """A user's `package.module:function`: called without arguments, it returns (forward, vjp, arguments).

    Raises InputError if there is no such function, CalledFailedError if it fails or returns something else.
    """
    module_name, colon, name = reference.partition(":")
    if not (module_name and colon and name):
        raise InputError(f"--mine: expected package.module:function, got {reference!r}")
    sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise InputError(f"--mine {reference}: expected a module that can be imported from here, got {error}") from error
        raise CalledFailedError(f"--mine {reference}: importing it raised {type(error).__name__}: {error}") from error
    except Exception as error:  # whatever the user's module does
        raise CalledFailedError(f"--mine {reference}: importing it raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(os.getcwd())
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--mine {reference}: expected a function {name} in {module_name}, got {function!r}")
    return Check(reference, "mine", lambda options: _users(reference, function))


def _users(reference: str, function: Callable[[], Any]) -> Pair:
    try:
        given = function()
    except Exception as error:  # the user's own
        raise CalledFailedError(f"--mine {reference}: it raised {type(error).__name__}: {error}") from error
    if not isinstance(given, Sequence) or len(given) != 3 or not all(map(callable, given[:2])):
        raise CalledFailedError(f"--mine {reference}: expected (forward, vjp, arguments) from it, got {type(given).__name__}"
                                f"{f' of {len(given)}' if isinstance(given, Sequence) else ''}")
    forward, vjp, arguments = given
    return Pair(forward, vjp, arguments)


def _placed(vjp: Callable[..., Any], place: Place) -> Callable[..., Any]:
    """The vjp computed elsewhere, of host arrays."""
    def there(dy: Any, *given: Array) -> tuple[Array, ...]:
        return tuple(map(to_host, vjp(place(np.asarray(dy)), *map(place, given))))

    return there


def run(checks: Sequence[Check], options: Options, place: Place = on_host) -> Iterator[Outcome]:
    """Each check's outcome as soon as it is there. What a user's own functions raise becomes CalledFailedError.

    Gradients are computed on the device of `place`, the derivatives that they are held to on the host.
    """
    if place is not on_host and (options.dtype == "longdouble" or any(check.kind == "mine" for check in checks)):
        raise InputError(f"--device {options.device}: expected float64 or float32 and functions of refimpl's own, got "
                         f"{options.dtype if options.dtype == 'longdouble' else '--mine'}")
    for check in checks:
        pair = check.build(options)
        arguments = pair.arguments
        if check.kind != "mine":
            arguments = {name: array.astype(options.dtype) for name, array in arguments.items()}
        try:
            vjp = pair.vjp if place is on_host else _placed(pair.vjp, place)
            report = check_vjp(pair.forward, vjp, arguments, method=options.method, directions=options.directions,
                               kinks=pair.kinks, seed=options.seed, zeros=pair.zeros)
        except GradcheckError as error:
            raise InputError(f"{check.name}: {error}") from error
        except Exception as error:
            if check.kind != "mine":
                raise
            raise CalledFailedError(f"--mine {check.name}: it raised {type(error).__name__}: {error}") from error
        yield Outcome(check, report, pair.kinks)


def exit_code(outcomes: Sequence[Outcome]) -> int:
    """0 all right; 1 a gradient is wrong; 4 something could not be decided."""
    if any(outcome.report.verdict == "FAIL" for outcome in outcomes):
        return 1
    return 0 if all(outcome.done for outcome in outcomes) else 4


def as_dict(outcomes: Sequence[Outcome], options: Options) -> dict[str, Any]:
    """For JSON: one entry for each gradient, and the largest relative error of all that passed."""
    gradients = [{"check": outcome.check.name, "kind": outcome.check.kind, **entry}
                 for outcome in outcomes for entry in outcome.report.as_dict()["arguments"]]
    return {**options._asdict(), "exit_code": exit_code(outcomes), "checks": len(outcomes), "gradients": gradients,
            "largest_relative_error": largest_error(outcomes)}


def largest_error(outcomes: Sequence[Outcome]) -> float:
    """Over all gradients that passed."""
    return max((entry.relative_error for outcome in outcomes for entry in outcome.report.arguments
                if entry.verdict == "PASS" and math.isfinite(entry.relative_error)), default=0.0)


def _of_pair(name: str, builder: Callable[[pairs.Stream, int], Pair]) -> Callable[[Options], Pair]:
    return lambda options: builder(random_stream(options.seed, f"check {name}"), options.size)


def _of_model(name: str, config: ModelConfig) -> Callable[[Options], Pair]:
    return lambda options: models.named(name, config, options.seed, options.size)


def _of_settings(name: str, tables: Mapping[str, Any]) -> list[Check]:
    config = settings.model_config({"vocabulary": PLACEHOLDER, **tables["model"]})
    check = Check(name, "model", _of_model(name, models.scaled_down(config)))
    return list(_and_in_tiles({name: check}, [name]).values())
