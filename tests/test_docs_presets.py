"""docs/presets.md holds what the code says of each preset. Run as a program, this file writes its table anew."""

from pathlib import Path

from refimpl import accounting, settings
from refimpl.arrays import limit_threads
from refimpl.config import TrainConfig

PAGE = Path(__file__).resolve().parent.parent / "docs/presets.md"
COLUMNS = ("preset", "L", "D", "H", "S", "N or F", "V", "B × T", "parameters", "GB at first", "GB, spans full",
           "Mop at first", "Mop, spans full")
HEADER = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|"


def row(name):
    tables = settings.preset(name)
    config, train = settings.model_config({"vocabulary": 256, **tables["model"]}), TrainConfig(**tables["train"])
    with limit_threads(2):
        told = accounting.describe(config, train)
    inner = f"N {config.memory}" if config.memory else f"F {config.feed_forward}"
    memory = [f"{told[key]['total'] / 1e9:,.3g}" for key in ("memory_at_first", "memory")]
    work = [f"{sum(told['operations_per_token'][when].values()) / 1e6:,.4g}" for when in ("span_initial", "full_span")]
    cells = [f"`{name}`", config.layers, config.width, config.heads, config.span, inner, config.vocabulary,
             f"{train.batch} × {train.block}", f"{told['parameters']['total']:,}", *memory, *work]
    return f"| {' | '.join(map(str, cells))} |"


def table():
    return "\n".join([HEADER, *map(row, settings.preset_names())])


def test_the_table_is_what_the_code_says():
    assert table() in PAGE.read_text(encoding="utf-8"), f"python {Path(__file__).name} writes it anew"


def test_every_preset_is_told_of():
    text = PAGE.read_text(encoding="utf-8")
    assert all(f"`{name}`" in text.replace(table(), "") for name in ("laptop", "tiny", "workstation-gpu"))


if __name__ == "__main__":
    before, _, rest = PAGE.read_text(encoding="utf-8").partition("| preset |")
    after = rest.partition("\n\n")[2]
    PAGE.write_text(f"{before}{table()}\n\n{after}", encoding="utf-8")
