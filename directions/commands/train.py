"""Commands that train: `train-direction`, and `edit` for one photo alone."""

from contextlib import nullcontext
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from directions.bank.bank import Bank
from directions.commands import options
from directions.commands.terminal import Terminal, answer, wrote
from flowgrad.errors import UsageError
from flowgrad.files import check_folder
from flowgrad.resources import DEFAULT_MODEL
from flowgrad.workers import Workers

if TYPE_CHECKING:
    from directions.train.recipe import Recipe
    from flowgrad.guidance.contrast import Contrast

app = typer.Typer()


@app.command("train-direction")
@options.with_recipe
def train_direction(
    recipe: "Recipe",
    text: options.Sentence,
    name: Annotated[str, typer.Option("--name", "-n", help="Name in the bank.", show_default=False)],
    images: Annotated[list[Path] | None, typer.Argument(help="About ten photos, or folders of them.")] = None,
    source: options.Source = None,
    keep: options.Keep = None,
    model: options.ModelName = DEFAULT_MODEL,
    guide: options.GuideName = None,
    samples: Annotated[
        int, typer.Option(help="Train on so many samples of the model instead of photos.", min=0, max=options.MOST)
    ] = 0,
    sampler: options.SamplerOption = "",
    calibrate_on: Annotated[
        list[Path] | None, typer.Option(help="Photos to calibrate on, not those trained on.")
    ] = None,
    calibration_photos: Annotated[
        int, typer.Option(help="Samples to calibrate on otherwise.", min=1, max=options.MOST)
    ] = 48,
    title: Annotated[str, typer.Option(help="One line for the bank; default: the text.")] = "",
    description: Annotated[str, typer.Option(help="A few sentences for the bank.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; repeatable.")] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the run; default runs/NAME.")] = None,
    bank: options.BankFolder = None,
    resume: Annotated[bool, typer.Option(help="Go on from an interrupted run in the folder.")] = True,
    align: options.Align = "auto",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    force: options.AnyWords = False,
    as_json: options.Json = False,
) -> None:
    """Train a direction from about ten photos and a sentence, and put it into the bank.

    flowgrad train-direction photos/ --text "a smiling face" --source "a serious face" --name smiling

    Afterwards `flowgrad apply-direction smiling photo.jpg` needs no training. Photos without a face are left out. The
    run's folder gets a figure of your photos before and after, the curves of the training, and a summary. Interrupted,
    it goes on where it was. `torchrun --nproc-per-node 2 -m cli train-direction ...` shares the work among processes.
    """
    from directions.file.texts import check_described, title_of
    from directions.photo.sources import find_sources
    from directions.train.folder import Run

    if bool(images) == bool(samples):
        raise UsageError("give either photos to train on, or --samples N to train on N samples of the model")
    if sampler and not samples:
        raise UsageError("--sampler says where samples come from: give --samples N too, and no photos")
    files = find_sources(map(str, images)) if images else []
    others = find_sources(map(str, calibrate_on)) if calibrate_on else []
    target = _checked(text, source, keep, model, guide, force)
    title, tags = title_of(title, target), tuple(tag or ())
    check_described(title=title, description=description, tags=tags)
    place = Run(name, Bank.default(bank), output or Path("runs") / name, resume, overwrite)
    if output:
        check_folder(output)
    if sampler:
        place.bank.get(sampler, options.model_name(model), "sampler")
    claimed = place.claimed(str(options.model_name(model))) if Workers.started().leads else nullcontext()
    with claimed, Workers.join() as workers:
        from directions.apply.photos import read_photos
        from directions.commands import tables
        from directions.progress import Silent, timed
        from directions.train import run
        from directions.train.calibration import Labels, samples_without
        from directions.train.checkpoint import digest
        from directions.train.task import Task
        from flowgrad.guidance.guide_files import load_guide
        from flowgrad.models import load_model

        reporter = Terminal(as_json) if workers.leads else Silent()
        loaded = load_model(model, workers.device(device), precision)
        network = load_guide(guide or loaded.config.guide, loaded.device)
        deal = partial(recipe.share, batch=loaded.batch, workers=workers)
        origin = [precision, str(samples)]
        if sampler:
            from directions.sampler.use import open_sampler

            loaded = open_sampler(sampler, loaded, place.bank)
            origin.append(place.bank.get(sampler, loaded.name, "sampler").load_sampler().hash)
        read = read_photos(files, loaded, place.bank, align, reporter) if files else None
        held_out = read_photos(others, loaded, place.bank, align, reporter) if others else None
        if read:
            origin.append(digest(read.images))
        workers.check_same("photos", repr((origin, digest(held_out.images) if held_out else None)))
        draw = partial(samples_without, loaded, network, target, samples, seed, None, deal)
        photos = (
            run.invert_photos(loaded, read.images, recipe, reporter, workers=workers)
            if read
            else timed(reporter, "sampling", draw)
        )
        kept = run.train_into_bank(
            Task.create(
                loaded,
                photos,
                text,
                guide=network,
                source=source,
                keep=keep or (),
                recipe=recipe,
                seed=seed,
                force=force,
                workers=workers,
            ),
            place,
            Labels(title, description, tags, read.hashes if read else ()),
            reporter,
            calibrate_on=held_out.images if held_out else None,
            calibration_photos=calibration_photos,
            origin=origin,
        )
    if kept is None:
        return
    entry, summary = kept
    unedited = [path for photos in (read, held_out) if photos for path in photos.unedited]
    answer(
        as_json,
        {**summary, "unedited": list(map(str, unedited))},
        tables.direction_card(entry),
        f"seconds: {', '.join(f'{stage} {s:.0f}' for stage, s in summary['seconds'].items())}",
        wrote(entry.path, *summary["files"]),
        f"next: flowgrad apply-direction {name} your-photo.jpg",
    )


def _checked(
    text: str, source: str | None, keep: list[str] | None, model: str, guide: str | None, force: bool
) -> "Contrast":
    """The text that is trained for. Raises UsageError for texts that cannot be, before anything is loaded."""
    from directions.file.texts import check_texts, check_words
    from flowgrad.guidance.names import vocabulary_of
    from flowgrad.model_config import load_config

    config = load_config(model)
    target, _ = check_texts(text, source, keep or (), config.subject)
    if reader := guide or config.guide:
        check_words(target, vocabulary_of(reader), force)
    return target


@app.command()
@options.with_recipe
def edit(
    recipe: "Recipe",
    photo: Annotated[Path, typer.Argument(help="One photo.", show_default=False)],
    text: options.Sentence,
    source: options.Source = None,
    keep: options.Keep = None,
    strength: Annotated[float, typer.Option("--strength", "-s", help="1: as far as the same person is kept.")] = 1.0,
    model: options.ModelName = DEFAULT_MODEL,
    guide: options.GuideName = None,
    crop: options.Crop = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("edited"),
    align: options.Align = "auto",
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    force: options.AnyWords = False,
    as_json: options.Json = False,
) -> None:
    """Edit one photo by a sentence: the same search as for a direction, for this photo alone.

    flowgrad edit photo.jpg --text "a smiling face"

    It fits this photo better than a direction would, takes longer, and cannot be used again. The photo keeps its size
    and details, as with apply-direction, and the largest face is edited; a figure shows it before and after.
    """
    from directions.bank.bank import Bank
    from directions.bank.mixture import check_strength
    from directions.photo.sources import find_sources

    check_strength(strength)
    files = find_sources([str(photo)])
    if len(files) > 1:
        raise UsageError(f"edit takes one photo; {photo} holds {len(files)}. For many, train a direction.")
    _checked(text, source, keep, model, guide, force)

    from directions.apply import outputs

    done, inputs = outputs.slug(text), outputs.Inputs(files)
    figures = outputs.output_paths(files, output, f"{done}-before-after", png=True)
    targets = [Path(target) for target in (*outputs.output_paths(files, output, done), *figures)]
    check_folder(output)
    for target in targets:
        outputs.check_output(target, inputs, overwrite)

    from directions.apply.files import composed
    from directions.apply.photos import read_photos
    from directions.figures import strip
    from directions.photo.composite import Patch
    from directions.photo.reading import read_photo, to_images
    from directions.photo.view import views
    from directions.photo.writing import save_image
    from directions.train import run
    from directions.train.task import Task
    from flowgrad.addresses import write_bytes
    from flowgrad.guidance.guide_files import load_guide
    from flowgrad.models import load_model

    terminal, loaded = Terminal(as_json), load_model(model, device, precision)
    network = load_guide(guide or loaded.config.guide, loaded.device)
    read = read_photos(files, loaded, Bank.default(), align, terminal, whole=not crop)
    photos = run.invert_photos(loaded, read.images, recipe, terminal)
    task = Task.create(
        loaded, photos, text, guide=network, source=source, keep=keep or (), recipe=recipe, seed=seed, force=force
    )
    edited, effect = run.edit(task, strength, terminal)
    if crop:
        pictures = [*to_images(edited.before[None]), *to_images(edited.after)]
        save_image(pictures[1], targets[0], overwrite)
    else:
        content = files[0].read()
        original, patches = read_photo(files[0], BytesIO(content)), [Patch(edited.difference(), read.places[0])]
        pictures = views(original.pixels, [[], patches])
        write_bytes(targets[0], composed(content, files[0].suffix, original, patches, targets[0].suffix))
    save_image(strip(pictures, ["photo", text]), targets[1], overwrite)
    kept = f"strength 1 is {edited.share:.0%} of what was found: beyond that the face may become another person's"
    answer(
        as_json,
        {"files": targets, "effect": effect, "share": edited.share},
        f"effect {effect:+.2f} log-odds of {task.target}",
        kept if edited.share < 1 else "",
        wrote(*targets),
    )
