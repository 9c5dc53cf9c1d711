"""Commands that measure: `evaluate` a direction, `benchmark` gradients and trainings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from directions.bank.bank import Bank
from directions.commands import options
from directions.commands.terminal import Terminal, answer, wrote
from directions.compare.names import Method
from directions.file.metadata import STEPS_LIMIT
from flowgrad.errors import UsageError
from flowgrad.files import refuse_existing
from flowgrad.resources import DEFAULT_MODEL

if TYPE_CHECKING:
    from rich.console import RenderableType

app = typer.Typer()
_COMPARED = "Comparison"
DISTANCE, SAMPLES = 0.35, 10  # of comparisons, where nothing else is asked for
SMILE = "a smiling face - a serious face"


@app.command()
def evaluate(
    direction: options.Mixture,
    photos: options.PhotosOption,
    strengths: options.Strengths = "1",
    judge: Annotated[str, typer.Option(help="Name or file of the judge.", callback=options.known_judge)] = "",
    method: Annotated[
        list[Method] | None,
        typer.Option(
            "--methods", help="Compare the direction with other ways to edit; repeatable.", rich_help_panel=_COMPARED
        ),
    ] = None,
    answer_for: Annotated[
        str, typer.Option("--answer", help="What the judge calls the text: happy.", rich_help_panel=_COMPARED)
    ] = "",
    distance: Annotated[
        float | None,
        typer.Option(
            help="Identity distance at which they are compared. The default is 0.35.",
            callback=options.is_positive,
            rich_help_panel=_COMPARED,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="To train the others by, all but published: name or .yaml file. Without it, default, or keep where "
            "texts are kept.",
            callback=options.known_recipe,
            rich_help_panel=_COMPARED,
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            help="Samples that they are trained on. The default is 10.",
            min=1,
            max=options.MOST,
            rich_help_panel=_COMPARED,
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="The same seed gives the same result.", callback=options.is_seed, rich_help_panel=_COMPARED),
    ] = None,
    guide: options.GuideName = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("evaluation"),
    model: options.DirectionsModel = None,
    bank: options.BankFolder = None,
    align: options.Align = "auto",
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Measure a direction on photos: its guide's score, an unrelated judge's answers, and identity by dlib.

    flowgrad evaluate smiling --photos faces/ --strengths -1,0.5,1

    Writes a contact sheet and evaluation.json. Photos without a face are left out.

    flowgrad evaluate old --photos faces/ --strengths 0.5,1,1.5 --methods direction --methods optimize --answer old

    The second call compares methods at equal identity distance; a strength of 1 moves latents as far as the direction
    does. It writes comparison.json, comparison.svg, and results.jsonl with a line for each photo and method, from which
    an interrupted run goes on.
    """
    from directions.bank.mixture import load_parts, parse_mixture
    from directions.photo.sources import find_sources
    from directions.train.recipe import load_recipe, usual_recipe
    from flowgrad.guidance.names import check_answer
    from flowgrad.model_config import load_config

    steps, terminal = options.numbers(strengths, "--strengths"), Terminal(as_json)
    where = Bank.default(bank)
    parts = load_parts(parse_mixture(direction), where, options.model_name(model))
    sheet, figures = output / "contact-sheet.png", output / "evaluation.json"
    results, compared = output / "results.jsonl", (output / "comparison.json", output / "comparison.svg")
    alone = {"--answer": answer_for, "--distance": distance, "--recipe": recipe, "--samples": samples, "--seed": seed}
    if not method and (given := [option for option, value in alone.items() if value not in (None, "")]):
        raise UsageError(f"{', '.join(given)} say how methods are compared: give --methods too, or leave that out")
    if answer_for and (reader := judge or load_config(model or parts[0][0].info.model).judge):
        check_answer(answer_for, reader)
    if method and len(parts) > 1:
        raise UsageError(f"--methods compares one direction with what is trained for its text; got {len(parts)}")
    for path in compared if method else (sheet, figures):
        refuse_existing(path, overwrite or (path in compared and results.exists()))
    files, info = find_sources(photos), parts[0][0].info
    others = load_recipe(recipe or usual_recipe(info.keep))
    apart = DISTANCE if distance is None else distance

    from directions.apply.photos import read_photos
    from directions.apply.steer import common_inversion, mixture
    from directions.commands import tables
    from directions.measure import evaluation
    from flowgrad.models import load_model

    common_inversion([part for part, _ in parts])
    loaded = load_model(model or info.model, device, precision)
    control = mixture(loaded, parts, terminal, force, steps)
    read = read_photos(files, loaded, where, align, terminal)
    if method:
        from directions.compare import run, summary

        if overwrite:
            results.unlink(missing_ok=True)
        asked = run.Asked(tuple(method), steps, apart, samples or SAMPLES, guide, judge, answer_for, seed or 0)
        outcomes = run.compare(loaded, control, info, read, others, asked, results, terminal)
        data = summary.save(outcomes, direction, apart, *compared)
        shown = tables.plain_table(*summary.outcome_rows(outcomes, apart), numbers=True)
        answer(as_json, data, shown, wrote(results, *compared))
        return
    measured, images = evaluation.evaluate_photos(loaded, control, read.images, info, steps, guide, judge, terminal)
    data = evaluation.save_evaluation(measured, images, read, sheet, figures, direction)
    table = tables.plain_table(*evaluation.evaluation_rows(measured), numbers=True)
    answer(as_json, data, table, wrote(sheet, figures))


@app.command()
def benchmark(
    text: Annotated[
        list[str] | None, typer.Option("--text", "-t", help="A text, or TEXT - SOURCE; repeatable.")
    ] = None,
    recipe: Annotated[
        list[str] | None,
        typer.Option("--recipe", help="To train by: name or .yaml file; repeatable.", callback=options.known_recipes),
    ] = None,
    steps: Annotated[
        int, typer.Option(help="N, Euler steps that gradients are compared on.", min=2, max=STEPS_LIMIT)
    ] = 100,
    thresholds: options.Thresholds = "0.005",
    factors: Annotated[
        str, typer.Option(help="Multiples of step sizes to try for plain descent.", callback=options.are_numbers)
    ] = "1",
    samples: Annotated[int, typer.Option(help="Samples to train on.", min=1, max=options.MOST)] = SAMPLES,
    held_out: Annotated[int, typer.Option(help="Samples to measure on.", min=2, max=options.MOST)] = 24,
    distance: Annotated[
        float, typer.Option(help="Identity distance at which effects are compared.", callback=options.is_positive)
    ] = DISTANCE,
    repeats: Annotated[int, typer.Option(help="Timed rounds of gradients after a warm-up.", min=1)] = 3,
    model: options.ModelName = DEFAULT_MODEL,
    guide: options.GuideName = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("benchmark"),
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    force: options.AnyWords = False,
    as_json: options.Json = False,
) -> None:
    """Compare gradients and trainings, ours and the published algorithm's, in one run: time, memory, effect.

    flowgrad benchmark --text "a smiling face - a serious face" --recipe full --recipe paper --recipe default

    Gradients: cosine to full back-propagation and share of its time. Trainings: seconds of an update, and the effect on
    samples that were not trained on, at equal identity distance, against seconds of training. The contestants take
    turns, so that a drift of the machine meets all. Writes benchmark.json and benchmark.svg.
    """
    from directions.file.texts import check_words
    from directions.train.recipe import load_recipe
    from flowgrad.guidance.contrast import Contrast
    from flowgrad.guidance.names import vocabulary_of
    from flowgrad.model_config import load_config

    xi, multiples = options.numbers(thresholds, "--thresholds"), options.numbers(factors, "--factors")
    if min(xi) < 0 or min(multiples) <= 0:
        raise UsageError(f"--thresholds takes 0 or more, --factors numbers above 0; got {thresholds} and {factors}")
    config = load_config(model)
    targets = [Contrast.parse(written, config.subject) for written in text or (SMILE,)]
    if reader := guide or config.guide:
        for target in targets:
            check_words(target, vocabulary_of(reader), force)
    recipes = {Path(name).stem: load_recipe(name) for name in recipe or ("full", "paper", "default")}
    figures, picture = output / "benchmark.json", output / "benchmark.svg"
    for path in (figures, picture):
        refuse_existing(path, overwrite)

    from directions.benchmark import run
    from directions.benchmark.gradients import comparison_rows
    from directions.benchmark.trainings import course_rows
    from directions.commands import tables
    from flowgrad.guidance.guide_files import load_guide
    from flowgrad.models import load_model

    loaded = load_model(model, device, precision)
    network = load_guide(guide or loaded.config.guide, loaded.device)
    bench = run.Bench(steps, xi, multiples, samples, held_out, distance, repeats, seed)
    results = run.compare(loaded, network, targets, recipes, bench, Terminal(as_json))
    data = run.save(results, bench, loaded, figures, picture)
    shown: list[RenderableType] = []
    for result in results:
        shown += [str(result.target), tables.plain_table(*comparison_rows(result.gradients), numbers=True)]
        shown += [tables.plain_table(*course_rows(result.courses), numbers=True)]
    answer(as_json, data, *shown, wrote(figures, picture))
