"""Commands that train: `train-direction`, and `edit` for one photo alone."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from directions.bank.bank import Bank
from directions.commands.options import (
    Align,
    Augmentations,
    BankFolder,
    Crop,
    Device,
    Eta,
    GuideName,
    Intervals,
    Iterations,
    Json,
    Keep,
    ModelName,
    Overwrite,
    Precision,
    RecipeName,
    Seed,
    Sentence,
    Setting,
    Source,
    StepSize,
    chosen_recipe,
)
from directions.commands.terminal import Terminal, answer, wrote
from flowgrad.errors import UsageError

if TYPE_CHECKING:
    pass

app = typer.Typer()


@app.command("train-direction")
def train_direction(
    text: Sentence,
    name: Annotated[str, typer.Option("--name", "-n", help="Name in the bank.", show_default=False)],
    images: Annotated[list[Path] | None, typer.Argument(help="About ten photos, or folders of them.")] = None,
    source: Source = None,
    keep: Keep = None,
    model: ModelName = "faces64",
    guide: GuideName = None,
    samples: Annotated[int, typer.Option(help="Train on so many samples of the model instead of photos.", min=0)] = 0,
    calibrate_on: Annotated[
        list[Path] | None, typer.Option(help="Photos to calibrate on, not those trained on.")
    ] = None,
    calibration_photos: Annotated[int, typer.Option(help="Samples to calibrate on otherwise.", min=1)] = 8,
    recipe: RecipeName = "default",
    iterations: Iterations = None,
    step_size: StepSize = None,
    eta: Eta = None,
    intervals: Intervals = None,
    augmentations: Augmentations = None,
    setting: Setting = None,
    title: Annotated[str, typer.Option(help="One line for the bank; default: the text.")] = "",
    description: Annotated[str, typer.Option(help="A few sentences for the bank.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; repeatable.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run; default runs/NAME.")] = None,
    bank: BankFolder = None,
    resume: Annotated[bool, typer.Option(help="Go on from an interrupted run in the folder.")] = True,
    align: Align = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a direction from about ten photos and a sentence, and put it into the bank.

    flowgrad train-direction photos/ --text "a smiling face" --source "a serious face" --name smiling

    Afterwards `flowgrad apply-direction smiling photo.jpg` needs no training. The run's folder gets a figure of
    your photos before and after, the curves of the training, and a summary. Interrupted, it goes on where it was.
    """
    from directions.apply.files import read_photos
    from directions.commands import tables
    from directions.photo.reading import find_photos
    from directions.train import run
    from directions.train.task import Task
    from flowgrad.guidance.guide_files import load_guide
    from flowgrad.guidance.text import Contrast
    from flowgrad.models import load_config, load_model

    changes = {"iterations": iterations, "step_size": step_size, "eta": eta}
    chosen = chosen_recipe(recipe, setting, seed, **changes, intervals=intervals, augmentations=augmentations)
    if bool(images) == bool(samples):
        raise UsageError("give either photos to train on, or --samples N to train on N samples of the model")
    files, others = (find_photos(paths) if paths else [] for paths in (images, calibrate_on))
    place = run.Run(output or Path("runs") / name, Bank.default(bank), resume, overwrite)
    run.check_free(place, name, load_config(model).name)
    terminal, loaded = Terminal(as_json), load_model(model, device, precision)
    given = load_guide(guide or loaded.config.guide, loaded.device)
    target = Contrast.parse(text, source or loaded.config.subject)
    hashes: tuple[str, ...]
    if samples:
        photos, hashes = run.draw(loaded, given, target, samples, seed, terminal), ()
    else:
        photos, hashes = run.gather(loaded, files, align, chosen, terminal)
    held = read_photos(others, loaded, align, terminal).images if others else None
    task = Task.create(loaded, photos, text, guide=given, source=source, keep=keep or (), recipe=chosen, seed=seed)
    trained = run.train_into_bank(
        task,
        run.Labels(name, title, description, tuple(tag or ())),
        place,
        terminal,
        hashes=hashes,
        calibrate_on=held,
        calibration_photos=calibration_photos,
        conditions=(precision, str(loaded.device)),
    )
    answer(
        as_json,
        run.summary(task, trained),
        tables.training_summary(trained),
        wrote(trained.entry.path, *trained.files),
        f"next: flowgrad apply-direction {name} your-photo.jpg",
    )


@app.command()
def edit(
    photo: Annotated[Path, typer.Argument(help="One photo.", show_default=False)],
    text: Sentence,
    source: Source = None,
    keep: Keep = None,
    strength: Annotated[float, typer.Option("--strength", "-s", help="Multiple of what was found.")] = 1.0,
    model: ModelName = "faces64",
    guide: GuideName = None,
    recipe: RecipeName = "default",
    iterations: Iterations = None,
    step_size: StepSize = None,
    eta: Eta = None,
    intervals: Intervals = None,
    augmentations: Augmentations = None,
    setting: Setting = None,
    crop: Crop = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("edited"),
    align: Align = "auto",
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Edit one photo by a sentence: the same search as for a direction, for this photo alone.

    flowgrad edit photo.jpg --text "a smiling face"

    It fits this photo better than a direction would, takes longer, and cannot be used again. The photo keeps its size
    and details, as with apply-direction, and the largest face is edited; a figure shows it before and after.
    """
    from directions.apply import files as editing
    from directions.figures import strip
    from directions.photo.composite import Patch
    from directions.photo.reading import find_photos, read_photo
    from directions.photo.writing import save_image
    from directions.train import run
    from directions.train.task import Task
    from flowgrad.guidance.guide_files import load_guide
    from flowgrad.models import load_model

    changes = {"iterations": iterations, "step_size": step_size, "eta": eta}
    chosen = chosen_recipe(recipe, setting, seed, **changes, intervals=intervals, augmentations=augmentations)
    editing.check_strength(strength)
    files = find_photos([photo])
    if len(files) > 1:
        raise UsageError(f"edit takes one photo; {photo} holds {len(files)}. For many, train a direction.")
    targets = [*editing.output_paths(files, output), *editing.output_paths(files, output, "-before-after")]
    for target in targets:
        editing.check_output(target, editing.resolved(files), overwrite)
    terminal, loaded = Terminal(as_json), load_model(model, device, precision)
    read = editing.read_photos(files, loaded, align, terminal)
    photos = run.invert_photos(loaded, read, chosen, terminal)
    given = load_guide(guide, loaded.device) if guide else None
    task = Task.create(loaded, photos, text, guide=given, source=source, keep=keep or (), recipe=chosen, seed=seed)
    edited = run.edit(task, strength, terminal)
    if crop:
        save_image(edited.after, targets[0], overwrite)
    else:
        patches = [Patch(edited.difference, read.places[0])]
        editing.write_composite(files[0], read_photo(files[0]), patches, targets[0], overwrite)
    save_image(strip([edited.before, edited.after], ["photo", text]), targets[1], overwrite)
    answer(
        as_json,
        {"files": targets, "effect": edited.effect},
        f"effect {edited.effect:+.2f} log-odds of {task.target}",
        wrote(*targets),
    )
