"""Commands that measure: `evaluate` a direction, `benchmark` the gradients."""

from pathlib import Path
from typing import Annotated

import typer

from directions.bank.bank import Bank
from directions.commands import options
from directions.commands.terminal import Terminal, answer, wrote
from flowgrad.files import refuse_existing
from flowgrad.resources import DEFAULT_MODEL

app = typer.Typer()


@app.command()
def evaluate(
    direction: options.Mixture,
    photos: options.PhotosOption,
    strengths: options.Strengths = "1",
    judge: Annotated[str, typer.Option(help="Name or file of the judge.", callback=options.known_judge)] = "",
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
    """
    from directions.bank.mixture import load_parts, parse_mixture
    from directions.photo.sources import find_sources

    steps, terminal = options.numbers(strengths, "--strengths"), Terminal(as_json)
    parts = load_parts(parse_mixture(direction), Bank.default(bank), options.model_name(model))
    sheet, figures = output / "contact-sheet.png", output / "evaluation.json"
    for path in (sheet, figures):
        refuse_existing(path, overwrite)
    files, info = find_sources(photos), parts[0][0].info

    from directions.apply.photos import read_photos
    from directions.apply.steer import common_inversion, mixture
    from directions.commands import tables
    from directions.measure import evaluation
    from flowgrad.models import load_model

    common_inversion([part for part, _ in parts])
    loaded = load_model(model or info.model, device, precision)
    control = mixture(loaded, parts, terminal, force, steps)
    read = read_photos(files, loaded, align, terminal)
    measured, images = evaluation.evaluate_photos(loaded, control, read.images, info, steps, guide, judge, terminal)
    data = evaluation.save_evaluation(measured, images, read, sheet, figures, direction)
    table = tables.plain_table(*evaluation.evaluation_rows(measured), numbers=True)
    answer(as_json, data, table, wrote(sheet, figures))


@app.command()
def benchmark(
    text: Annotated[str, typer.Option("--text", "-t", help="Whose score is differentiated.")] = "a smiling face",
    steps: Annotated[int, typer.Option(help="N, Euler steps.", min=2)] = 100,
    thresholds: options.Thresholds = "0.001,0.005,0.01",
    count: Annotated[int, typer.Option(help="Samples in the editing.", min=1)] = 4,
    repeats: Annotated[int, typer.Option(help="Timed rounds after a warm-up.", min=1)] = 3,
    model: options.ModelName = DEFAULT_MODEL,
    guide: options.GuideName = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    as_json: options.Json = False,
) -> None:
    """Compare accelerated gradients with full back-propagation: cosine and time, in one run.

    flowgrad benchmark --steps 100 --thresholds 0.001,0.005,0.01
    """
    from flowgrad.guidance.contrast import Contrast
    from flowgrad.model_config import load_config

    xi = options.numbers(thresholds, "--thresholds")
    target = Contrast.parse(text, load_config(model).subject)

    from directions.commands import tables
    from directions.measure.benchmark import compare_gradients, comparison_rows
    from flowgrad.guidance.guide_files import load_guide
    from flowgrad.models import load_model

    loaded = load_model(model, device, precision)
    network = load_guide(guide or loaded.config.guide, loaded.device)
    compared = compare_gradients(loaded, network, target, steps, xi, count, repeats)
    comparisons = list(Terminal(as_json).track(compared, "comparing", len(xi)))
    answer(as_json, comparisons, tables.plain_table(*comparison_rows(comparisons), numbers=True))
