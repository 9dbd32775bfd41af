"""`make mutants`: every bug of the registry is planted, and a test must kill it. Fails if one survives.

Names of bugs as arguments: only these, and no page is written.
"""

import sys
from collections import Counter

import kinds
import pages
import suite

from refimpl.golden import planted

HEADING = "Planted bugs"
INTRODUCTION = """\
`make mutants` plants every bug of [`planted_bugs.toml`](../refimpl/golden/planted_bugs.toml), one at a time, and runs the
tests until one fails. Bugs marked * are shared by forward and backward, so that no gradient check can see them: only a test
counts whose numbers come from elsewhere. Golden values are left out: the bugs die without them.
"""


def main(names: list[str]) -> int:
    """Exit status 1 if a bug survives, or if tests fail without any."""
    bugs = {name: bug for name, bug in planted.bugs().items() if not names or name in names}
    right = suite.Mutant("no bug", {})
    mutants = [right, *(suite.Mutant(bug.id, planted.changed_sources(bug), not bug.consistent) for bug in bugs.values())]

    def work(tests: suite.Suite) -> int:
        found: dict[str, suite.Kill | None] = {}
        for mutant, kill in tests.kills(iter(mutants)):
            found[mutant.id] = kill
            print(f"{mutant.id}: " + (f"{kill.kind}, {kill.test}" if kill else "passed all tests"), flush=True)
        broken, survivors = found.pop(right.id), [name for name, kill in found.items() if kill is None]
        print(f"{len(found)} planted, {len(found) - len(survivors)} killed")
        if broken:
            print(f"tests fail without any bug: {broken.test}")
        if not names:
            write(bugs, found)
        return int(bool(survivors or broken))

    return suite.run(work)


def write(bugs: dict[str, planted.Bug], found: dict[str, suite.Kill | None]) -> None:
    """The page's section: which test killed which bug, and how many each kind of test killed."""
    kills = {name: found[name] or suite.Kill("", "**survived**") for name in bugs}
    counts = Counter(kill.kind for kill in kills.values())
    killed = sum(kill is not None for kill in found.values())
    rows = [(f"`{name}`{' *' if bug.consistent else ''}", bug.sentence, kills[name].kind, short(kills[name].test))
            for name, bug in bugs.items()]
    summary = ", ".join(f"{counts[kind]} by {kind}" for kind in sorted(counts, key=lambda kind: -counts[kind]))
    pages.write(HEADING, f"{INTRODUCTION}\n{len(bugs)} planted, {killed} killed: {summary}.\n\n"
                + pages.table(["bug", "what it is", "killed by", "test"], rows))


def short(test: str) -> str:
    """File and function of a test's id, without its parameters: which of them fails first may differ between machines."""
    return test.partition("[")[0].removeprefix(f"{kinds.TESTS.name}/").replace("::", " ")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
