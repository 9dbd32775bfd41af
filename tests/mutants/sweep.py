"""`make sweep`: every small change of the numerical files by rule (mutations.py) must be killed by a test.

A change that survives must stand in equivalent.toml with the reason why no test can see it; and what stands there must be a
change that there is, and that survives. `sweep.py 200 7`: a sample of 200 drawn with seed 7, without those listed; without a
seed it is drawn anew whenever a numerical file changes.
"""

import random
import sys
import tomllib
import zlib
from collections import Counter, defaultdict, deque
from collections.abc import Iterator
from pathlib import Path

import kinds
import mutations
import pages
import suite

from refimpl.golden import planted

HEADING = "Every small change"
INTRODUCTION = """\
`make sweep` makes every change of the numerical files that the rules of
[`mutations.py`](../tests/mutants/mutations.py) know, one at a time, and runs the tests until one fails; `make sweep-sample`
makes a few of them. Left alone is what checks, raises or words a message. Changes that no test can see are listed one by one
in [`equivalent.toml`](../tests/mutants/equivalent.toml), each with the reason.
"""
EQUIVALENT = Path(__file__).with_name("equivalent.toml")
LAYERS = sorted(f"layers.{path.stem}" for path in Path(planted.__file__).parents[1].glob("layers/[!_]*.py"))
TARGETS = [*LAYERS, "variants", "model", "optimizers", "masks", "inputs", "training", "parameters", "arrays"]
# they find words for a message, or the machine's threads, or run on a GPU alone, as device/ does, with tests of their own
SKIPPED = frozenset({"_first_nonfinite", "is_device", "array_module", "quiet", "_blas", "_pool", "available_cores",
                     "map_in_threads", "wait", "_update_on_device"})
REMEMBERED = 12  # killers of a module's earlier changes, tried first on the next


def everything() -> list[mutations.Mutation]:
    """All changes of all targets. Raises ValueError if two of them could not be told apart."""
    found = [change for module in TARGETS
             for change in mutations.mutations(module, planted.source_of(module), SKIPPED)]
    twice = [key for key, count in Counter(change.key for change in found).items() if count > 1]
    if twice:
        raise ValueError(f"tests/mutants/mutations.py: expected changes that differ, got twice {twice[0]}")
    return found


def seed_of_the_files() -> int:
    """The same for the same numerical files."""
    return zlib.crc32("".join(map(planted.source_of, TARGETS)).encode())


def listed() -> dict[mutations.Key, str]:
    """The reasons of equivalent.toml by what they are given for."""
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("equivalent", [])
    return {(entry["module"], entry["function"], entry["before"], entry["after"]): entry["reason"] for entry in entries}


def mutants(
    changes: list[mutations.Mutation], reached: dict[str, list[str]], recent: dict[str, deque[str]]
) -> Iterator[suite.Mutant]:
    """Each change to be hunted by the tests that call its function, first by those that killed its neighbours."""
    for number, change in enumerate(changes):
        tests = reached.get(f"{change.module}:{change.function}")  # None: no function, or one that is never called
        killers = [test for test in recent[change.module] if tests is None or test in tests]
        yield suite.Mutant(str(number), {change.module: change.text}, True, killers, tests and frozenset(tests))


def main(arguments: list[str]) -> int:
    """Exit status 1 if a change survives that is not listed, or one is listed that is none or is killed."""
    changes, reasons = everything(), listed()
    gone = sorted(set(reasons) - {change.key for change in changes})
    if arguments:
        size, seed = int(arguments[0]), int(arguments[1]) if arguments[1:] else seed_of_the_files()
        print(f"a sample of {size} changes, seed {seed}", flush=True)
        open_ones = [change for change in changes if change.key not in reasons]
        changes = random.Random(seed).sample(open_ones, min(size, len(open_ones)))

    def work(tests: suite.Suite) -> int:
        recent: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=REMEMBERED))
        found: dict[int, suite.Kill | None] = {}
        for mutant, kill in tests.kills(mutants(changes, tests.reached(), recent)):
            change = changes[int(mutant.id)]
            found[int(mutant.id)] = kill
            if kill and kill.test and kill.test not in recent[change.module]:
                recent[change.module].appendleft(kill.test)
            how = f"{kill.kind}, {kill.test}" if kill else "passed all tests"
            print(f"{len(found)}/{len(changes)} {change.module} {change.function}: {change.before} -> {change.after}: {how}",
                  flush=True)
        return judge([(change, found[number]) for number, change in enumerate(changes)], reasons, gone, not arguments)

    return suite.run(work)


def judge(
    found: list[tuple[mutations.Mutation, suite.Kill | None]], reasons: dict[mutations.Key, str],
    gone: list[mutations.Key], whole: bool,
) -> int:
    """Tells what is wrong, and writes the page if all changes were made; the exit status."""
    survivors = [change.key for change, kill in found if kill is None and change.key not in reasons]
    killed = [change.key for change, kill in found if kill and change.key in reasons]
    for sentence, keys in (("survived, and is not listed", survivors), ("is listed, but killed", killed),
                           ("is listed, but there is no such change", gone)):
        for module, function, before, after in keys:
            print(f"{sentence}: {module} {function}: {before} -> {after}")
    print(f"{len(found)} changes, {sum(kill is not None for _, kill in found)} killed")
    if whole:
        write(found)
    return int(bool(survivors or killed or gone))


def write(found: list[tuple[mutations.Mutation, suite.Kill | None]]) -> None:
    """The page's section: how many changes of each kind were made, killed, and listed as equivalent."""
    made = Counter(change.operator for change, _ in found)
    killed = Counter(change.operator for change, kill in found if kill)
    rows = [(operator, count, killed[operator], count - killed[operator]) for operator, count in made.most_common()]
    rows.append(("all", made.total(), killed.total(), made.total() - killed.total()))
    pages.write(HEADING, f"{INTRODUCTION}\n" + pages.table(["change", "made", "killed", "survived, listed"], rows))


if __name__ == "__main__":
    kinds.check_complete()
    sys.exit(main(sys.argv[1:]))
