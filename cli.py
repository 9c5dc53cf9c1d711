"""The command line: `flowgrad COMMAND`. This module assembles the commands of `directions/commands`.

To add a command, write a function with a docstring in the module of its group, under `@app.command("name")`: its
parameters are its arguments and options (shared ones are in `options.py`), and it ends with `answer(...)`. Import what
is heavy (torch, diffusers) inside the function, so that the others start quickly. A new group is added below.
"""

import gc
import io
import sys
from typing import Annotated

import typer

from directions.commands import apply, bank, cluster, measure, models, own_models, page, paint, sampler, train
from directions.commands.errors import Commands

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for group in (train, apply, paint, measure, page, own_models, cluster):
    app.add_typer(group.app)
app.add_typer(bank.app, name="bank")
app.add_typer(models.app, name="models")
app.add_typer(sampler.app, name="sampler")


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"flowgrad {version('flowgrad')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Train a direction from ten photos and a sentence, then apply it to any photo."""


def main() -> None:
    """Run the command line."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # as stderr: names of files need not be texts
    gc.set_threshold(10_000)  # imports make many objects and no garbage: looking for it costs a tenth of the start
    app()


if __name__ == "__main__":
    main()
