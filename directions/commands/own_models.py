"""Commands that make models of your own: `train-guide` and `train-flow`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from directions.commands.options import Device, Json, Overwrite, Seed
from directions.commands.terminal import Terminal, answer, wrote

app = typer.Typer()


@app.command("train-guide")
def train_guide(
    images: Annotated[
        str, typer.Argument(help="Folder, zip, tar, or data set (hf://owner/name) of images.", show_default=False)
    ],
    table: Annotated[Path, typer.Argument(help="CSV file: one row per image.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the guide to.", show_default=False)],
    config: Annotated[str, typer.Option(help="Name or .yaml file: attributes, captions, network.")] = "faces64",
    minutes: Annotated[float | None, typer.Option(help="Train for so long (default 10).")] = None,
    steps: Annotated[int | None, typer.Option(help="Or for so many steps, which is repeatable.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Guide to begin with: name or .safetensors.")] = None,
    part: Annotated[Literal["all", "even", "odd"], typer.Option(help="Rows of the table to train on.")] = "all",
    resume: Annotated[bool, typer.Option(help="Go on from an interrupted run in the folder.")] = True,
    seed: Seed = 0,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a guide, a small CLIP, for your own kind of images from a table of their labels.

    flowgrad train-guide faces.zip labels.csv --output my-guide --minutes 10

    Then: flowgrad train-direction photos/ --guide my-guide/model.safetensors --text ...
    """
    from directions.commands import tables
    from directions.own_models.guide import GuideJob, run_guide_job
    from flowgrad.training.guide.config import load_guide_config

    limit = 10.0 if minutes is None and steps is None else minutes
    job = GuideJob(images, table, load_guide_config(config), output, part, steps, limit, seed, device, resume, start)
    path, areas = run_guide_job(job, Terminal(as_json), overwrite)
    rows = [(question, f"{area:.3f}") for question, area in areas.items()]
    answer(
        as_json,
        {"guide": path, "auc": areas},
        *([tables.plain_table(("question", "AUC"), rows)] if rows else []),
        wrote(path, output / "README.md"),
    )


@app.command("train-flow")
def train_flow(
    images: Annotated[
        str | None, typer.Argument(help="Folder, zip, tar, or data set (hf://owner/name) of pictures.")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the model to.")] = Path("my-flow"),
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels; the recipe's is 64.")] = None,
    minutes: Annotated[float | None, typer.Option(help="Train for so long (default 60).")] = None,
    steps: Annotated[int | None, typer.Option(help="Or for so many steps, which is repeatable.")] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="Name or .yaml file: network and training.")] = "faces64",
    start: Annotated[str | None, typer.Option("--from", help="Model to begin with: name or folder.")] = None,
    reflow: Annotated[str | None, typer.Option(help="Straighten this model on pairs drawn from it.")] = None,
    pairs: Annotated[int | None, typer.Option(help="How many to draw for --reflow first (default 20000).")] = None,
    pair_steps: Annotated[int | None, typer.Option(help="Euler steps of each pair (default 50).")] = None,
    splits: Annotated[Path | None, typer.Option(help="CSV with columns file and split (train or test).")] = None,
    held_out: Annotated[float | None, typer.Option(help="Else this share is held out.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest.")] = None,
    schedule: Annotated[
        Literal["cosine", "constant"] | None, typer.Option(help="cosine falls to zero at the end.")
    ] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Mirror half of the images.")] = False,
    augment: Annotated[bool, typer.Option("--augment", help="Small shifts, contrast, brightness.")] = False,
    evaluate_every: Annotated[int, typer.Option(help="Steps between held-out losses and sheets.")] = 500,
    compiled: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Default: if long.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Write the weights in float16.")] = False,
    name: Annotated[str, typer.Option(help="Name of the model. The default is the name of the folder.")] = "",
    title: Annotated[str, typer.Option(help="For the card.")] = "",
    licence: Annotated[str, typer.Option(help="Of the weights, for the card.")] = "",
    subject: Annotated[str, typer.Option(help='What the pictures show: "a shoe".')] = "",
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the folder's unfinished run.")] = False,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same result; the recipe's is 0.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a model of your own on pictures; afterwards, --model FOLDER uses it.

    flowgrad train-flow shoes/ --size 64 --minutes 120 --output my-shoes

    With several processes: torchrun --nproc-per-node 4 -m cli train-flow ...
    """
    import dataclasses
    import shlex
    import sys

    from directions.own_models.flow import FlowJob, run_flow_job
    from flowgrad.training.flow.trainer import Budget
    from flowgrad.training.workers import Workers

    changes: dict[str, object] = {"size": size, "batch": batch, "learning_rate": learning_rate, "seed": seed}
    changes |= {"schedule": schedule, "held_out": held_out, "flips": flips or None, "augment": augment or None}
    job = FlowJob(
        output=output,
        budget=Budget(steps, 60.0 if minutes is None and steps is None else minutes),
        images=images,
        reflow=reflow,
        pairs=pairs,
        pair_steps=pair_steps,
        splits=splits,
        start=start,
        recipe=recipe,
        changes=changes,
        resume=resume,
        compiled=compiled,
        device=device,
        evaluate_every=evaluate_every,
        half=half,
        name=name,
        title=title,
        licence=licence,
        subject=subject,
        command=shlex.join(["flowgrad", *sys.argv[1:]]),
    )
    with Workers.join() as workers:
        terminal = Terminal(as_json or not workers.leads)
        result = run_flow_job(job, terminal, terminal.follow, workers)
    if not workers.leads:
        return
    answer(
        as_json,
        dataclasses.asdict(result),
        f"held-out loss {result.held_out_start:.4f} -> {result.held_out_end:.4f} in {result.steps} steps",
        wrote(result.folder / "README.md", result.folder / "samples.png", result.folder),
        f"next: flowgrad models add NAME {result.folder}, or --model {result.folder}",
    )
