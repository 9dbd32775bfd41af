"""`make faults`: every campaign at full size; each writes its section of docs/reliability.md. Fails if anything was lost.

python tests/faults/run.py [kills] [calls] [reading] [endurance] [mpi_kills]
"""

import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import calls
import endurance
import kills
import mpi_kills
import reading

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reliability.md"


def of_kills(found: dict[str, Any]) -> tuple[str, str, bool]:
    """Heading, text, and whether all went well."""
    by_event, by_time = found["event"], found["time"]
    lost = by_event["lost"] + by_time["lost"] + by_event["different"] + by_time["different"]
    text = (f"`python tests/faults/kills.py 200` trains a small run with dropout, a schedule, a checkpoint every 3 updates "
            f"and a validation every 7, kills it with SIGKILL and resumes it, over and over. At random events, of which a "
            f"run "
            f"has {by_event['events']:,} (updates, and calls that change or sync files, in the thread that writes too): "
            f"{by_event['kills']} kills in {by_event['runs']} runs; after random times: {by_time['kills']} in "
            f"{by_time['runs']}. **Lost: {by_event['lost'] + by_time['lost']}. Other than the uninterrupted run, in any bit "
            f"of parameters, optimiser, past, progress or logged loss: {by_event['different'] + by_time['different']}.**")
    return "Kills", text, not lost


def of_calls(found: dict[str, Any]) -> tuple[str, str, bool]:
    """The same."""
    faults, well = found["calls"], True
    text = (f"`python tests/faults/calls.py` (strace injects) lets each of the {faults['calls']} system calls of "
            f"a checkpoint's writing, and of the older one's removal, fail with ENOSPC, EIO, EROFS and EACCES, or "
            f"sends "
            f"SIGKILL there: {faults['faults']} faults, of which the writer reported {faults['refused']}, "
            f"{faults['killed']} "
            f"killed it, and {faults['whole']} "
            f"did no harm (an older folder that stayed, say). **Runs left without a loadable "
            f"checkpoint, or unable to write the next: {faults['lost']}.** In the order of the calls nothing gets its name, "
            f"or is removed, before what it stands on is synced: {len(faults['unsynced'])} exceptions.")
    well = not faults["lost"] and not faults["unsynced"]
    if "full" in found:
        full, frozen = found["full"], found["read-only"]
        text += (f"\n\nOn {full['disks']} file systems with room for 0, 1, 2, … pages more than the run has, {full['full']} "
                 f"of which filled up in training: lost {full['lost']}, not ended with one line and exit code 2 or 3: "
                 f"{full['unclear']}. On one that was remounted read-only `train` is refused in "
                 f"{frozen['lines']} line and `eval` {'works' if frozen['read'] else 'fails'}.")
        well = well and not full["lost"] and not full["unclear"] and frozen["refused"] and frozen["read"]
    return "System calls", text, well


def of_reading(found: dict[str, Any]) -> tuple[str, str, bool]:
    """The same."""
    rows, well = [], True
    for name, figures in found.items():
        outcomes = dict(figures["outcomes"])
        told = [outcomes.pop(kind, 0) for kind in ("refused", "harmless", "another one's")]
        rows.append("| " + " | ".join([name, f"{figures['files']:,}", *(f"{count:,}" for count in told),
                                       f"{sum(outcomes.values()):,}", f"{figures['slowest']:.2f} s"]) + " |")
        well = well and not outcomes
    head = ["| files | damaged | refused in one line | harmless | another valid one | anything else | slowest |",
            "|---|---|---|---|---|---|---|"]
    return "Damaged files", "\n".join([
        "`python tests/faults/reading.py` flips bits, truncates, lengthens, swaps and zeroes blocks, enlarges headers and",
        "numbers, nests brackets, writes texts that are no UTF-8 or have no white space, and gives each file to the",
        "command, in a process with 1 GB to spare and 10 s for each.",
        "", *head, *rows, "",
        "Harmless: what was read is what there was before, as after damage to a comment. Another valid one: where damage",
        "carries checksums that fit it, or a file written by hand or by others has none, it is a file like any other; what",
        "it says is checked, and what it can't say is refused. A prepared text that is taken then is trained on; a text",
        "that `data prepare` takes is read a second time, in plain Python, and its tokens must be the same."]), well


def of_endurance(found: dict[str, Any]) -> tuple[str, str, bool]:
    """The same."""
    updates, traced = found["updates"], found["traced_updates"]
    return "Endurance", "\n".join([
        f"`python tests/faults/endurance.py {updates} {traced}`: {updates:,} updates of a tiny model, logged, validated and",
        f"saved along the way, memory looked at {endurance.LOOKS} times. What the process has for itself (a mapped text is",
        f"the system's) was {found['half']:,} bytes at half of them and {found['end']:,} at the end, in the second half",
        f"at most {found['growth']:,} more than at half. 1 MiB is allowed, one arena of Python's allocator; a list with",
        f"a slot for each update of that half takes {4 * updates:,} bytes. To the byte, by tracemalloc: the second half",
        f"of {traced:,} updates adds {found['kept']:,} bytes to what Python and NumPy hold;",
        f"{endurance.KEPT * traced // 2:,} are allowed,",
        f"half such a list. **{'Flat' if found['flat'] else 'It grows'}.**", "",
        "At some moment a run takes 0.9 MB more, once: 961,216 bytes are CPython's table of interned strings, made anew",
        "when names that come and go have used up its entries (NumPy makes some in `as_strided`)."]), found["flat"]


def of_mpi_kills(found: dict[str, Any]) -> tuple[str, str, bool]:
    """The same."""
    seconds, different = found.get("seconds_until_over", {"median": 0.0, "largest": 0.0}), len(found["different"])
    return "One rank of several killed", "\n".join([
        f"`python tests/faults/mpi_kills.py {found['kills']} 0`: {found['ranks']} ranks of MPICH train a small model with",
        "dropout (3 rows, which 2 ranks do not divide evenly; a checkpoint every 3 updates, beside the best by validation).",
        "One rank, drawn at random, gets SIGKILL: a third of the times while the ranks start, else after 1 to 12 records",
        "and a part of an update. mpiexec ends the others, and the run is resumed with as many. At the end every tensor",
        "of the last checkpoint, its progress and all logged losses are compared with those of the run that nobody killed.",
        "", "| kills | runs lost | tensors or losses that differ | until all ranks were gone, median | largest |",
        "|---|---|---|---|---|",
        f"| {found['kills']} | {found['lost']} | {different} | {seconds['median']:.2f} s | {seconds['largest']:.2f} s |", "",
        "`tests/test_mpi.py` kills two of them in every run of the tests, and holds the campaign to a planted error (a",
        "checkpoint that forgets the past of the last rank's rows is found different)."]), not (found["lost"] or different)


CAMPAIGNS: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any]], tuple[str, str, bool]]]] = {
    "kills": (lambda: kills.main(200), of_kills), "calls": (calls.main, of_calls),
    "reading": (reading.main, of_reading), "endurance": (lambda: endurance.main(endurance.UPDATES), of_endurance),
    "mpi_kills": (mpi_kills.measure, of_mpi_kills),
}


def write(heading: str, text: str, page: Path = PAGE) -> None:
    """Puts a section in place of the one with that heading, or at the page's end."""
    title, *sections = page.read_text(encoding="utf-8").split("\n## ")
    kept = {section.partition("\n")[0]: section.partition("\n")[2] for section in sections}
    paragraphs = [part if part.startswith("|") or "\n|" in part else textwrap.fill(part, 124)
                  for part in text.strip().split("\n\n")]
    kept[heading] = "\n" + "\n\n".join(paragraphs) + "\n"
    page.write_text("\n## ".join([title, *(f"{name}\n{body}" for name, body in kept.items())]), encoding="utf-8")


def main(names: list[str]) -> int:
    """Exit status 1 if anything was lost, different, accepted, or grew."""
    failed = []
    for name in names or list(CAMPAIGNS):
        measure, tell = CAMPAIGNS[name]
        found = measure()
        heading, text, well = tell(found)
        print(found, flush=True)
        write(heading, text)
        if not well:
            failed.append(name)
    print(f"failed: {', '.join(failed)}" if failed else "nothing lost")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
