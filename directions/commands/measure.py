"""Commands that measure: `evaluate` a direction, `benchmark` the gradients."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from directions.bank.bank import Bank
from directions.commands.options import (
    Align,
    BankFolder,
    Device,
    Force,
    GuideName,
    Json,
    Mixture,
    ModelName,
    Overwrite,
    OwnModel,
    Precision,
    model_name,
    numbers,
)
from directions.commands.terminal import Terminal, answer, wrote
from flowgrad.files import refuse_existing

if TYPE_CHECKING:
    pass

app = typer.Typer()


@app.command()
def evaluate(
    direction: Mixture,
    photos: Annotated[list[Path], typer.Option("--photos", "-p", help="Photos or folders; repeatable.")],
    strengths: Annotated[str, typer.Option(help="Strengths to measure: --strengths -1,1.")] = "1",
    judge: Annotated[str, typer.Option(help="Name or .safetensors of the judge.")] = "",
    guide: GuideName = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("evaluation"),
    model: OwnModel = None,
    bank: BankFolder = None,
    align: Align = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure a direction on photos: its guide's score, an unrelated judge's answers, and identity by dlib.

    flowgrad evaluate smiling --photos faces/ --strengths -1,0.5,1

    Writes a contact sheet and evaluation.json.
    """
    from directions.apply import files as editing
    from directions.apply.steer import common_inversion
    from directions.commands import tables
    from directions.measure import evaluation as measuring
    from directions.photo.reading import find_photos
    from flowgrad.models import load_model

    steps, terminal = numbers(strengths, "--strengths"), Terminal(as_json)
    parts = editing.load_parts(editing.parse_mixture(direction), Bank.default(bank), model_name(model))
    sheet, figures = output / "contact-sheet.png", output / "evaluation.json"
    for path in (sheet, figures):
        refuse_existing(path, overwrite)
    files = find_photos(photos)
    loaded = load_model(model or parts[0][0].info.model, device, precision)
    control = editing.mixture(loaded, parts, terminal, force, steps)
    read = editing.read_photos(files, loaded, align, terminal)
    info = parts[0][0].info
    common_inversion([part for part, _ in parts])
    tools = measuring.load_tools(loaded, guide, judge)
    found = measuring.evaluate_photos(loaded, tools, control, read.images, info, steps, terminal)
    data = measuring.save_evaluation(found, files, sheet, figures, direction)
    answer(as_json, data, tables.evaluation_table(found.measured), wrote(sheet, figures))


@app.command()
def benchmark(
    text: Annotated[str, typer.Option("--text", "-t", help="Whose score is differentiated.")] = "a smiling face",
    steps: Annotated[int, typer.Option(help="N, Euler steps.", min=2)] = 100,
    thresholds: Annotated[str, typer.Option(help="Values of xi.")] = "0.001,0.005,0.01",
    count: Annotated[int, typer.Option(help="Samples in the editing.", min=1)] = 4,
    repeats: Annotated[int, typer.Option(help="Timed rounds after a warm-up.", min=1)] = 3,
    model: ModelName = "faces64",
    guide: GuideName = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Compare accelerated gradients with full back-propagation: cosine and time, in one run.

    flowgrad benchmark --steps 100 --thresholds 0.001,0.005,0.01
    """
    import dataclasses

    from directions.commands import tables
    from directions.measure.benchmark import compare_gradients
    from flowgrad.guidance.guide_files import load_guide
    from flowgrad.guidance.text import Contrast
    from flowgrad.models import load_model

    loaded, xi = load_model(model, device, precision), numbers(thresholds, "--thresholds")
    network = load_guide(guide or loaded.config.guide, loaded.device)
    compared = compare_gradients(
        loaded, network, Contrast.parse(text, loaded.config.subject), steps, xi, count, repeats
    )
    found = list(Terminal(as_json).track(compared, "comparing", len(xi)))
    rows = [
        (
            f"{c.xi:g}",
            f"{c.intervals}",
            f"{c.cosine:.4f}",
            f"{c.plain_cosine:.4f}",
            f"{c.seconds:.2f}",
            f"{c.share:.1%}",
        )
        for c in found
    ]
    head = ("xi", f"intervals of {steps}", "cosine", "of Eq. 13", "seconds", "of the full pass")
    answer(as_json, [dataclasses.asdict(c) for c in found], tables.plain_table(head, rows))
