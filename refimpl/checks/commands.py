"""`refimpl gradcheck`: parse, call, print."""

import click

from refimpl import exits
from refimpl.exits import debug_option
from refimpl.starts import device_option, use_device


def _directions(context: click.Context, parameter: click.Parameter, value: str) -> str | int:
    """`full`, or a number of random directions."""
    if value == "full":
        return "full"
    if value.isdecimal() and int(value) >= 1:
        return int(value)
    raise click.BadParameter(f"expected full or a number of 1 or more, got {value!r}")


@click.command()
@click.argument("what", required=False)
@click.option("--mine", metavar="MODULE:FUNCTION", help="Your own pair: the function returns (forward, vjp, arguments).")
@click.option("--method", type=click.Choice(["complex-step", "richardson", "central"]), default="complex-step",
              show_default=True, help="How the derivative is taken.")
@click.option("--dtype", type=click.Choice(["float64", "float32", "longdouble"]), default="float64", show_default=True,
              help="What the gradient is computed in.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--size", type=click.IntRange(1), default=3, show_default=True,
              help="Block, head width and number of vectors.")
@click.option("--directions", callback=_directions, metavar="full|K", default="full", show_default=True,
              help="Every element of every argument, or so many random directions.")
@device_option
@click.option("--json", "as_json", is_flag=True, help="Print a relative error and a verdict for each gradient as JSON.")
@debug_option
def gradcheck(
    what: str | None, mine: str | None, method: str, dtype: str, seed: int, size: int, directions: str | int, device: str,
    as_json: bool,
) -> None:
    """Hold hand-written gradients against numerical derivatives.

    WHAT is a pair of the layers (attention, span, adaptive-softmax, …), a form of the model (head-split,
    positions-transformer-xl, …), a preset or a TOML file, scaled down, or all.

    Exit code 0: all pass. 1: a gradient is wrong. 3: your function failed. 4: something could not be decided.

    \b
    refimpl gradcheck all
    refimpl gradcheck attention --method richardson --dtype longdouble
    refimpl gradcheck --mine mypackage.mymodule:pair
    """
    from refimpl import console
    from refimpl.checks import run
    from refimpl.errors import InputError

    if (what is None) == (mine is None):
        came = "neither" if what is None else "both"
        raise InputError(f"gradcheck: expected a name (`all` for everything) or --mine, got {came}")
    checks = run.select(what) if what is not None else [run.mine(str(mine))]
    options = run.Options(method, dtype, seed, size, directions, device)
    outcomes = []
    for outcome in run.run(checks, options, use_device(device)):
        outcomes.append(outcome)
        if not as_json:
            click.echo(console.gradcheck_text(outcome.check.kind, outcome.check.name, outcome.report))
    if as_json:
        console.show(run.as_dict(outcomes, options), "", as_json)
    else:
        gradients = sum(len(outcome.report.arguments) for outcome in outcomes)
        click.echo(f"{len(outcomes)} checks, {gradients} gradients; largest relative error of those that passed "
                   f"{run.largest_error(outcomes):.1e} ({method}, {dtype})")
    if code := run.exit_code(outcomes):
        raise exits.EndedError(code)
