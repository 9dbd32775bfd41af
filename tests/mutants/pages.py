"""docs/mutants.md, section by section: each runner writes its own."""

from collections.abc import Iterable, Sequence

import kinds

PAGE = kinds.TESTS.parent / "docs" / "mutants.md"
TITLE = "# How the tests are tested\n"


def write(heading: str, text: str) -> None:
    """Puts a section in place of the one with that heading, or at the page's end."""
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else TITLE
    title, *sections = old.split("\n## ")
    kept = {section.partition("\n")[0]: section.partition("\n")[2] for section in sections}
    kept[heading] = f"\n{text.strip()}\n"
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text("\n## ".join([title, *(f"{name}\n{body}" for name, body in kept.items())]), encoding="utf-8")


def table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines)
