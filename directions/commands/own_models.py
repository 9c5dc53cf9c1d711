"""Commands that make models of your own: `train-flow`, `train-autoencoder` and `train-guide`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from directions.commands.options import Device, Json, RecipeSeed, Setting, changed
from directions.commands.terminal import Terminal, answer, wrote
from flowgrad.workers import Workers

if TYPE_CHECKING:
    from flowgrad.training.loop.run import RunOptions

app = typer.Typer()

Pictures = Annotated[str, typer.Argument(help="Folder, zip, tar, or data set (hf://owner/name).", show_default=False)]
Output = Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.", show_default=False)]
Minutes = Annotated[float | None, typer.Option(help="Train for so long. The default is 60.")]
Steps = Annotated[int | None, typer.Option(help="Or for so many steps, which is repeatable.")]
Resume = Annotated[bool, typer.Option(help="Go on with the folder's run; else it goes to the folder's trash.")]
Compiled = Annotated[bool | None, typer.Option("--compile/--no-compile", help="The default is to, if it is long.")]
EvaluateEvery = Annotated[int, typer.Option(help="Steps between held-out losses and sheets.")]


def _run(output: Path, steps: int | None, minutes: float | None, **how: object) -> "RunOptions":
    """How long and how to train, as the commands say it alike."""
    from flowgrad.training.loop.run import RunOptions
    from flowgrad.training.loop.trainer import Budget

    return RunOptions(output, Budget(steps, 60.0 if minutes is None and steps is None else minutes), **how)  # type: ignore[arg-type]


def _command() -> str:
    """The command as it was typed, for a card."""
    import shlex
    import sys

    return shlex.join(["flowgrad", *sys.argv[1:]])


@app.command("train-flow")
def train_flow(
    images: Annotated[str | None, typer.Argument(help="Folder, zip, tar, or data set (hf://owner/name).")] = None,
    output: Output = Path("my-flow"),
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels. The default is the recipe's.")] = None,
    autoencoder: Annotated[
        str | None, typer.Option(help="Train on latents: a model's name, a diffusers folder, or a name on the hub.")
    ] = None,
    minutes: Minutes = None,
    steps: Steps = None,
    recipe: Annotated[
        str | None, typer.Option("--recipe", help="Name or .yaml file. The default is faces64, of latents faces128.")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="Model to begin with: name or folder.")] = None,
    reflow: Annotated[str | None, typer.Option(help="Straighten this model on pairs drawn from it.")] = None,
    pairs: Annotated[int | None, typer.Option(help="How many --reflow draws first. The default is 20000.")] = None,
    pair_steps: Annotated[int | None, typer.Option(help="Euler steps of each pair. The default is 50.")] = None,
    splits: Annotated[Path | None, typer.Option(help="CSV with columns file and split (train or test).")] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Mirror half of the images.")] = False,
    setting: Setting = None,
    evaluate_every: EvaluateEvery = 500,
    compiled: Compiled = None,
    name: Annotated[str, typer.Option(help="Name of the model. The default is the name of the folder.")] = "",
    title: Annotated[str, typer.Option(help="For the card.")] = "",
    licence: Annotated[str, typer.Option(help="Of the weights, for the card.")] = "",
    subject: Annotated[str, typer.Option(help='What the pictures show: "a shoe".')] = "",
    resume: Resume = True,
    seed: RecipeSeed = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a model of your own on pictures; afterwards, --model FOLDER uses it.

    flowgrad train-flow shoes/ --size 64 --minutes 120 --output my-shoes

    With several processes: torchrun --nproc-per-node 4 -m cli train-flow ...
    """
    import dataclasses

    from directions.own_models.flow_source import FlowSource

    source = FlowSource(images, reflow, pairs, pair_steps, splits, start, autoencoder)

    from directions.own_models.flow import FlowJob, run_flow_job

    job = FlowJob(
        _run(output, steps, minutes, resume=resume, compiled=compiled, device=device, evaluate_every=evaluate_every),
        source,
        recipe,
        changes=changed(setting, size=size, seed=seed, flips=flips or None),
        name=name,
        title=title,
        licence=licence,
        subject=subject,
        command=_command(),
    )
    with Workers.join() as workers:
        terminal = Terminal(as_json or not workers.leads)
        result = run_flow_job(job, terminal, terminal.follow, workers)
    if workers.leads:
        answer(
            as_json,
            dataclasses.asdict(result),
            f"held-out loss {result.held_out_start:.4f} -> {result.held_out_end:.4f} in {result.steps} steps",
            wrote(result.folder / "README.md", result.folder / "samples.png", result.folder),
            f"next: flowgrad models add NAME {result.folder}, or --model {result.folder}",
        )


@app.command("train-autoencoder")
def train_autoencoder(
    images: Pictures,
    output: Output = Path("my-autoencoder"),
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels. The default is the recipe's.")] = None,
    minutes: Minutes = None,
    steps: Steps = None,
    recipe: Annotated[str, typer.Option("--recipe", help="Name or .yaml file: network and training.")] = "faces128",
    start: Annotated[Path | None, typer.Option("--from", help="Folder of an autoencoder to begin with.")] = None,
    splits: Annotated[Path | None, typer.Option(help="CSV with columns file and split (train or test).")] = None,
    setting: Setting = None,
    evaluate_every: EvaluateEvery = 500,
    licence: Annotated[str, typer.Option(help="Of the weights, for the card.")] = "",
    resume: Resume = True,
    seed: RecipeSeed = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train the autoencoder whose latents `train-flow --autoencoder` works on.

    flowgrad train-autoencoder shoes/ --size 256 --minutes 60 --output shoe-latents
    """
    from directions.own_models.autoencoder import AutoencoderJob, run_autoencoder_job

    job = AutoencoderJob(
        _run(output, steps, minutes, resume=resume, device=device, evaluate_every=evaluate_every),
        images,
        splits,
        start,
        recipe,
        changed(setting, size=size, seed=seed),
        licence,
        _command(),
    )
    with Workers.join() as workers:
        terminal = Terminal(as_json or not workers.leads)
        decibels = run_autoencoder_job(job, terminal, terminal.follow, workers)
    if workers.leads:
        answer(
            as_json,
            {"folder": output, "decibels": decibels},
            f"held-out images return with {decibels:.1f} dB",
            wrote(output / "README.md", output / "reconstructions.png", output),
            f"next: flowgrad train-flow {images}{f' --size {size}' if size else ''} --autoencoder {output}",
        )


@app.command("train-guide")
def train_guide(
    images: Pictures,
    table: Annotated[Path, typer.Argument(help="CSV file: one row per image.", show_default=False)],
    output: Output = Path("my-guide"),
    config: Annotated[str, typer.Option(help="Name or .yaml file: attributes, captions, network.")] = "faces64",
    minutes: Minutes = None,
    steps: Steps = None,
    start: Annotated[str | None, typer.Option("--from", help="Guide to begin with: name or .safetensors.")] = None,
    part: Annotated[Literal["all", "even", "odd"], typer.Option(help="Rows of the table to train on.")] = "all",
    setting: Setting = None,
    resume: Resume = True,
    seed: RecipeSeed = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Train a guide, a small CLIP, for your own kind of images from a table of their labels.

    flowgrad train-guide faces.zip labels.csv --output my-guide --minutes 10

    Then: flowgrad train-direction photos/ --guide my-guide/model.safetensors --text ...
    """
    from flowgrad.training.guide.config import load_guide_config

    chosen = load_guide_config(config).change(**changed(setting, seed=seed))

    from directions.commands import tables
    from directions.own_models.guide import GuideJob, run_guide_job

    job = GuideJob(images, table, chosen, _run(output, steps, minutes, resume=resume, device=device), part, start)
    with Workers.join() as workers:
        terminal = Terminal(as_json or not workers.leads)
        path, areas = run_guide_job(job, terminal, terminal.follow, workers)
    if workers.leads:
        rows = [(question, f"{area:.3f}") for question, area in areas.items()]
        answer(
            as_json,
            {"guide": path, "auc": areas},
            *([tables.plain_table(("question", "AUC"), rows)] if rows else []),
            wrote(path, output / "README.md"),
        )
