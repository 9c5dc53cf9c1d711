"""Commands that paint: `paint` makes pictures of coarse strokes, `paint-evaluate` compares the methods."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from directions.bank.bank import Bank
from directions.commands import options
from directions.commands.terminal import Terminal, answer, wrote
from directions.paint.methods import (
    COUNT_LIMIT,
    DEFAULT_METHOD,
    SHEET,
    STEPS_LIMIT,
    SUMMARY,
    Method,
    candidate_name,
    check_steps,
    check_strength,
)
from flowgrad.errors import UsageError
from flowgrad.files import refuse_existing
from flowgrad.resources import DEFAULT_MODEL

app = typer.Typer()


@app.command()
def paint(
    strokes: Annotated[Path, typer.Argument(help="A painting: coarse strokes of colour.", show_default=False)],
    text: Annotated[str, typer.Option("--text", "-t", help='What it shows: "an old face".')] = "",
    source: options.Source = None,
    method: Annotated[
        Method | None, typer.Option(help=f"How the strokes are followed; default: {DEFAULT_METHOD.value}.")
    ] = None,
    strength: Annotated[
        float | None,
        typer.Option("--strength", "-s", help="How freely: near 0 as painted, near 1 the rough colours alone."),
    ] = None,
    steps: Annotated[
        int | None, typer.Option(help="Gradient steps: with more, the strokes count more.", min=0, max=STEPS_LIMIT)
    ] = None,
    count: Annotated[int, typer.Option(help="Candidates.", min=1, max=COUNT_LIMIT)] = 4,
    region: Annotated[
        list[str] | None, typer.Option(help='Words where a mask is white: mouth.png="a smiling face"; repeatable.')
    ] = None,
    save: Annotated[
        str, typer.Option(help="Train a direction that paints every seed so, and put it into the bank by this name.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to write to; default painted/STROKES.")
    ] = None,
    model: options.ModelName = DEFAULT_MODEL,
    guide: options.GuideName = None,
    bank: options.BankFolder = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    force: options.AnyWords = False,
    as_json: options.Json = False,
) -> None:
    """Make pictures that follow coarse strokes and look like the model's data.

    flowgrad paint strokes.png --text "an old face" --count 4

    flowgrad paint strokes.png --region mouth.png="a smiling face"

    flowgrad paint strokes.png --save red-hair, then: flowgrad sample --direction red-hair

    The candidates are shown on one sheet beside the painting and its blur, which is what they follow.
    """
    from directions.paint import checks
    from directions.paint.request import read_region, read_strokes
    from flowgrad.model_config import load_config

    config, folder = load_config(model), output or Path("painted") / strokes.stem
    reads, chosen = checks.reads_words(config), method or DEFAULT_METHOD
    if save:
        checks.check_saved(config, reads, bool(text or region), bool(method or region or strength is not None))
    target = checks.to_target(text, source, config, reads, guide, force)
    check_strength(strength)
    check_steps(steps, chosen, bool(save))
    painting = read_strokes(strokes, config.size)
    regions = [read_region(written, painting, config.subject) for written in region or ()]
    if not reads:
        checks.check_known([part.target for part in regions], config, guide, force)
    for name in (SHEET, SUMMARY, *(candidate_name(seed, i) for i in range(count))):
        refuse_existing(folder / name, overwrite)
    place, own = Bank.default(bank), str(options.model_name(model))
    with place.claim(save, own, overwrite) if save else nullcontext():
        from directions.commands import tables
        from directions.paint import run
        from directions.paint.job import Plan, open_job

        terminal = Terminal(as_json)
        for warning in (*painting.warnings, *checks.of_unheard(target, chosen, reads, own)):
            terminal.warn(warning)
        job = open_job(config, device, precision, guide, target, regions, text)
        plan = Plan(chosen, strength, steps, seed)
        if save:
            outcome = run.compose(job, painting, plan, count, strokes, save, place, overwrite, terminal)
        else:
            outcome = run.candidates(job, painting, plan, count, terminal)
        summary = run.write(outcome, painting, folder, seed, {"strokes": strokes, "text": text, "model": own})
    next_line = f"next: flowgrad sample --direction {save} --count 8 --grid" if save else ""
    table = tables.plain_table(*run.rows(outcome), numbers=True)
    answer(as_json, summary, table, wrote(*summary["files"]), next_line)


@app.command("paint-evaluate")
def paint_evaluate(
    photos: Annotated[Path, typer.Argument(help="Folder or archive of photos.", show_default=False)],
    splits: Annotated[
        Path | None, typer.Option(help="Table whose test rows say which photos to take; columns file and split.")
    ] = None,
    count: Annotated[int, typer.Option(help="Photos that paintings are made of.", min=2, max=options.MOST)] = 200,
    method: Annotated[list[Method] | None, typer.Option(help="A method; repeatable. The default is all.")] = None,
    strengths: Annotated[str, typer.Option("--strengths", help="Of every method: --strengths 0.5,0.7.")] = "0.5,0.7",
    steps: Annotated[
        str | None, typer.Option("--steps", help="Gradient steps, of the methods that take them: --steps 0,4,8.")
    ] = None,
    text: Annotated[str, typer.Option("--text", "-t", help="A text to follow too, and to measure.")] = "",
    model: options.ModelName = DEFAULT_MODEL,
    guide: options.GuideName = None,
    judge: Annotated[str, typer.Option(help="Name or file of the judge.", callback=options.known_judge)] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("paint-evaluation"),
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Compare the methods on paintings made from photos: how faithful, how real, at what cost.

    flowgrad paint-evaluate faces.zip --splits labels.csv --strengths 0.5,0.6,0.7,0.8

    What is done is kept in the folder: interrupted, or with another method or strength, it goes on where it was.
    """
    from directions.paint import checks
    from flowgrad.model_config import load_config
    from flowgrad.training.data.pictures import find_source, read_splits

    tried = options.numbers(strengths, "--strengths")
    counts = _whole(steps)
    for strength in tried:
        check_strength(strength)
    config = load_config(model)
    target = checks.to_target(text, None, config, checks.reads_words(config), guide, False)
    chart, table_file = output / "curve.png", output / "evaluation.json"
    for file in (chart, table_file):
        refuse_existing(file, overwrite)
    find_source(photos)
    if splits:
        read_splits(splits)

    from directions.commands import tables
    from directions.paint import evaluation
    from directions.paint.job import open_job

    terminal = Terminal(as_json)
    job = open_job(config, device, precision, guide, target, text=text)
    material = evaluation.prepare(job, photos, splits, count, judge, output, terminal)
    rows = [material.row(plan, terminal) for plan in evaluation.plans(method or list(Method), tried, counts, seed)]
    own = material.of_photos(terminal)
    data = evaluation.write(own, rows, len(material.strokes), chart, table_file)
    table = tables.plain_table(*evaluation.table_rows([own, *rows]), numbers=True)
    answer(as_json, data, table, wrote(chart, table_file))


def _whole(written: str | None) -> tuple[int | None, ...]:
    """Numbers of gradient steps; (None,) for each method's own. Raises UsageError for what is no whole number."""
    if written is None:
        return (None,)
    values = options.numbers(written, "--steps")
    if not all(0 <= value <= STEPS_LIMIT and value == int(value) for value in values):
        raise UsageError(f"--steps takes whole numbers of 0 to {STEPS_LIMIT}, like 0,4,8; got {written!r}")
    return tuple(int(value) for value in values)
