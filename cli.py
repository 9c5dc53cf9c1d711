"""The command line: thin commands over `directions`, which import what is heavy when they run."""

import errno
import gc
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperGroup

from directions.bank import SUFFIX, Bank, Entry
from directions.direction import refuse_existing
from flowgrad.errors import FlowgradError, UsageError, is_out_of_memory

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from directions.batch import Outcome
    from directions.portrait import Portrait
    from flowgrad.training.flow import FlowStep

T = TypeVar("T")
RESUMABLE = {  # what to do after an interruption
    "train-direction": "run the same command again to resume",
    "train-guide": "run the same command again to resume",
    "train-flow": "run the same command again with --resume to go on",
}
LISTED = 10  # files that are named one by one when a command ends


class Commands(TyperGroup):
    """Every error becomes one or two lines and an exit code: 1 for a failed job, 2 for a wrong call."""

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            again = RESUMABLE.get(ctx.invoked_subcommand or "", "")
            raise _failed("; ".join(part for part in ("interrupted", again) if part), 130) from None
        except BrokenPipeError:  # what reads our answer has seen enough: typer ends quietly
            raise
        except Exception as error:
            if os.environ.get("FLOWGRAD_DEBUG") == "1" or type(error).__module__.startswith(("typer", "click")):
                raise
            raise _failed(_explain(error), 2 if isinstance(error, UsageError) else 1) from None


def _failed(message: str, code: int) -> typer.Exit:
    typer.echo(f"{typer.style('error:', fg='red', bold=True)} {message}", err=True)
    return typer.Exit(code)


def _explain(error: Exception) -> str:
    if isinstance(error, FlowgradError):
        return str(error)
    if is_out_of_memory(error):
        return (
            "there is not enough memory. Give fewer photos, lower --augmentations, --count, or `batch` in the model's "
            "configuration, set `checkpointing: true` there, or use --precision bf16 or --device cpu."
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full: {error.filename or 'a file'} was not written. Free some space, then run it again."
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}. Check the name and its permissions."
    return f"{type(error).__name__}: {error}. This is a bug; FLOWGRAD_DEBUG=1 shows where."


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train a direction from ten photos and a sentence, then apply it to any photo.",
)
bank_app = typer.Typer(no_args_is_help=True, help="Browse and keep directions: yours, and those that ship.")
models_app = typer.Typer(no_args_is_help=True, help="The generative models that directions steer.")
app.add_typer(bank_app, name="bank")
app.add_typer(models_app, name="models")


# --- what commands say -------------------------------------------------------------------------------------------


def _console(stderr: bool = False) -> "Console":
    from rich.console import Console

    return Console(stderr=stderr, markup=False, highlight=False, emoji=False)


class Terminal:
    """A Reporter with progress bars and warnings on stderr; bars only for people, and never with --json."""

    def __init__(self, quiet: bool) -> None:
        self.console, self.quiet = _console(stderr=True), quiet

    def track(self, items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
        """Yield the items under a progress bar, or a clock where their number is not known."""
        if self.quiet or not self.console.is_terminal:
            yield from items
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        counted = (BarColumn(), MofNCompleteColumn()) if total else ()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), *counted, TimeElapsedColumn())
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield from progress.track(items, total=total, description=label)

    def follow(self, steps: "Iterator[FlowStep]") -> "Iterator[FlowStep]":
        """Yield steps of a flow's training under a bar with the losses, images per second and time left."""
        if self.quiet or not self.console.is_terminal:
            yield from steps
            return
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (TextColumn("training"), BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=self.console, transient=True) as progress:
            task, held_out = progress.add_task("", total=1.0), None
            for step in steps:
                held_out = held_out if step.held_out is None else step.held_out
                progress.update(task, completed=step.progress, description=_pace(step, held_out))
                yield step

    def warn(self, text: str) -> None:
        """Print a warning, in one piece."""
        typer.echo(f"{typer.style('warning:', fg='yellow')} {text}", err=True)


def _pace(step: "FlowStep", held_out: float | None) -> str:
    """Where a training is, in one line."""
    parts = (
        f"step {step.step}",
        "" if step.loss is None else f"loss {step.loss:.4f}",
        "" if held_out is None else f"held out {held_out:.4f}",
        "" if step.images_per_second is None else f"{step.images_per_second:.0f} images/s",
        "" if step.seconds_left is None else f"{step.seconds_left / 60:.0f} min left",
    )
    return "  ".join(part for part in parts if part)


def _say(text: str) -> None:
    typer.echo(text)


def _wrote(*paths: Path) -> None:
    for path in paths:
        _say(f"wrote {path}")


def _tell(as_json: bool, data: object, *renderables: object) -> None:
    """Print JSON for programs, or renderables for people."""
    if as_json:
        typer.echo(json.dumps(data, indent=2, ensure_ascii=False, default=str))
        return
    console = _console()
    for renderable in renderables:
        console.print(renderable)


def _answer(as_json: bool, data: object, line: str) -> None:
    """Print JSON for programs, or one line, unbroken, for people."""
    if as_json:
        _tell(True, data)
    else:
        _say(line)


# --- parameters that several commands share ----------------------------------------------------------------------


def _complete_name(incomplete: str) -> list[str]:
    return [entry.name for entry in Bank.default().list() if entry.name.startswith(incomplete)]


def _numbers(written: str, option: str) -> tuple[float, ...]:
    """Read "-1,0,1". Raises UsageError naming the option."""
    try:
        numbers = tuple(float(part) for part in written.split(",") if part.strip())
    except ValueError:
        numbers = (math.nan,)
    if not all(map(math.isfinite, numbers)):
        raise UsageError(f"{option} are numbers with commas between them, like -1,0,1; got {written!r}")
    return numbers


def _align(written: str) -> Any:
    if written not in ("auto", "always", "never"):
        raise UsageError(f"--align must be auto, always or never; got {written!r}")
    return written


Name = Annotated[str, typer.Argument(help="Name in the bank.", autocompletion=_complete_name, show_default=False)]
Mixture = Annotated[
    str,
    typer.Argument(
        metavar="NAME[:STRENGTH][+...]",
        help="A direction, or several that add: smiling:0.8+old:0.3. Names in the bank, or .safetensors files.",
        autocompletion=_complete_name,
        show_default=False,
    ),
]
Photos = Annotated[list[Path], typer.Argument(help="Photos, or folders of them.", show_default=False)]
ModelName = Annotated[str, typer.Option("--model", "-m", help="Name, .yaml file or folder; see `flowgrad models`.")]
OwnModel = Annotated[str | None, typer.Option("--model", "-m", help="Model, if not the one the direction names.")]
GuideName = Annotated[str | None, typer.Option("--guide", help="Guide, if not the model's own: name or .safetensors.")]
BankFolder = Annotated[Path | None, typer.Option("--bank", help="Folder of your bank, else FLOWGRAD_BANK.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, ...")]
Precision = Annotated[str, typer.Option(help="auto, fp32, bf16 or fp16.")]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.", min=0)]
Align = Annotated[str, typer.Option(help="auto: align faces where needed; always: fail without a face; never.")]
Crop = Annotated[bool, typer.Option("--crop", help="Write the aligned face at the model's size.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what exists.")]
Force = Annotated[bool, typer.Option("--force", help="Use directions made for other weights of the model.")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Sentence = Annotated[str, typer.Option("--text", "-t", help='What to become: "a smiling face".', show_default=False)]
Source = Annotated[str | None, typer.Option(help='What to come from: "a serious face". Default: the model\'s subject.')]
Keep = Annotated[list[str] | None, typer.Option(help='A text whose score shall not change: "a woman - a man".')]
RecipeName = Annotated[str, typer.Option("--recipe", help="Name or .yaml file.")]
Iterations = Annotated[int | None, typer.Option(help="Updates of the control.", rich_help_panel="Recipe")]
StepSize = Annotated[float | None, typer.Option(help="Length of an update.", rich_help_panel="Recipe")]
Eta = Annotated[float | None, typer.Option(help="Text against preservation, 0 to 1.", rich_help_panel="Recipe")]
Intervals = Annotated[int | None, typer.Option(help="Intervals of the grid.", rich_help_panel="Recipe")]
Augmentations = Annotated[int | None, typer.Option(help="Views of each image a step.", rich_help_panel="Recipe")]
Setting = Annotated[
    list[str] | None, typer.Option("--set", help="Any other key: --set momentum=0.5.", rich_help_panel="Recipe")
]


def _model_name(model: str | None) -> str | None:
    """The name in the configuration of a model that was given by name, file or folder."""
    if model is None:
        return None
    from flowgrad.models import load_config

    return load_config(model).name


def _recipe(name: str, settings: list[str] | None, **changes: object) -> Any:
    """The recipe with what the user changed; options that were not given leave it as it is."""
    import yaml

    from directions.recipe import load_recipe

    given = {key: value for key, value in changes.items() if value is not None}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set needs KEY=VALUE, for example momentum=0.5; got {setting!r}")
        try:
            given[key.strip().replace("-", "_")] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError) as error:  # ValueError: a date that there is not
            raise UsageError(f"--set {setting}: {value!r} is no value; write, for example, momentum=0.5") from error
    return load_recipe(name, **given)


# --- the main job ------------------------------------------------------------------------------------------------


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
    from directions import run, show
    from directions.photos import find_photos
    from directions.train import Task
    from flowgrad.guidance.text import Contrast
    from flowgrad.models import load_config, load_model
    from flowgrad.models.guide import load_guide

    changes = {"iterations": iterations, "step_size": step_size, "eta": eta}
    chosen = _recipe(recipe, setting, **changes, intervals=intervals, augmentations=augmentations)
    chosen.settings(seed)  # wrong values are refused before anything is loaded
    if bool(images) == bool(samples):
        raise UsageError("give either photos to train on, or --samples N to train on N samples of the model")
    files, others = (find_photos(paths) if paths else [] for paths in (images, calibrate_on))
    place = run.Run(output or Path("runs") / name, Bank.default(bank), resume, overwrite)
    run.check_free(place, name, load_config(model).name)
    terminal, loaded = Terminal(as_json), load_model(model, device, precision)
    given = load_guide(guide or loaded.config.guide, loaded.device)
    target = Contrast.parse(text, source or loaded.config.subject)
    if samples:
        photos, hashes = run.draw(loaded, given, target, samples, seed, terminal), ()
    else:
        photos, hashes = run.gather(loaded, files, _align(align), chosen, terminal)
    held = run.gather(loaded, others, _align(align), chosen, terminal)[0] if others else None
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
    _tell(as_json, run.summary(task, trained), show.training_summary(trained))
    if not as_json:
        _wrote(trained.entry.path, *trained.files)
        _say(f"next: flowgrad apply-direction {name} your-photo.jpg")


@app.command("apply-direction")
def apply_direction(
    direction: Mixture,
    photos: Photos,
    strength: Annotated[float, typer.Option("--strength", "-s", help="0 nothing, 1 full effect, -1 reverse.")] = 1.0,
    strengths: Annotated[str, typer.Option(help="A strip of several: --strengths -1,-0.5,0,0.5,1.")] = "",
    grid: Annotated[bool, typer.Option("--grid", help="Also draw a contact sheet of all photos.")] = False,
    face: Annotated[int | None, typer.Option(help="Only this face, counted from the left.", min=1)] = None,
    keep_identity: Annotated[
        float | None, typer.Option(help="Per face, the largest strength that keeps dlib's distance below this: 0.5.")
    ] = None,
    crop: Crop = False,
    lossless: Annotated[bool, typer.Option("--lossless", help="Write PNG, whatever the photo was.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("edited"),
    model: OwnModel = None,
    bank: BankFolder = None,
    align: Align = "auto",
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Apply a direction to photos, in one pass and without training.

    flowgrad apply-direction smiling photo.jpg --strength 0.8

    flowgrad apply-direction smiling:0.8+old:0.3 holiday/ --grid

    flowgrad apply-direction smiling photo.jpg --strengths -1,-0.5,0,0.5,1

    Photos keep their names, sizes and details: what the edit changes in a face (all of them, or --face 2) is put back
    into the photo, and the rest stays as it was. Strips and sheets show the face as the model sees it.
    One that cannot be edited is reported, and the others go on.
    """
    from directions.photos import process_beside

    with process_beside(_align(align)) as beside:
        from directions import batch
        from directions.photos import find_photos
        from flowgrad.models import load_model

        steps, terminal = _numbers(strengths, "--strengths"), Terminal(as_json)
        parts = batch.load_parts(batch.parse_mixture(direction, strength), Bank.default(bank), _model_name(model))
        files = find_photos(photos)
        targets = batch.output_paths(files, output, "-strip" if steps else "", lossless)
        sheet = output / "contact-sheet.png"
        if grid:
            batch.check_output(sheet, batch.resolved(files), overwrite)
        loaded = load_model(model or parts[0][0].info.model, device, precision)
        control = batch.mixture(loaded, parts, terminal, force, steps or (1.0,))
        wanted = batch.Wanted(steps, crop, face, _align(align), overwrite, keep_identity)
        found = batch.apply_to_files(loaded, control, files, targets, wanted, beside)
        outcomes = list(terminal.track(found, "editing", len(files)))
        if grid:
            batch.save_sheet(outcomes, steps, direction, sheet, overwrite)
        _report(outcomes, sheet if grid else None, terminal, as_json)


def _kept(outcome: "Outcome") -> str:
    """What the identity budget left of the strength asked for, face by face."""
    faces = (f"{share:.0%} of the strength, identity distance {distance:.2f}" for share, distance in outcome.kept)
    return f"{outcome.photo.name}: {'; '.join(faces)}"


def _report(outcomes: "list[Outcome]", sheet: Path | None, terminal: Terminal, as_json: bool) -> None:
    """Say what became of each photo; raise what went wrong where there was one, else exit with 1 if any failed."""
    failed = [outcome for outcome in outcomes if outcome.error]
    if len(outcomes) == 1 and outcomes[0].error:
        raise outcomes[0].error
    for outcome in outcomes:
        if outcome.warning:
            terminal.warn(f"{outcome.photo.name}: {outcome.warning}")
    for outcome in failed:
        _failed(f"{outcome.error}", 1)
    written = [outcome.output for outcome in outcomes if outcome.output]
    files = [
        {"photo": o.photo, "output": o.output, "error": o.error and str(o.error), "warning": o.warning}
        | ({"identity": [{"share": share, "distance": apart} for share, apart in o.kept]} if o.kept else {})
        for o in outcomes
    ]
    if as_json:
        _tell(True, {"files": files, "contact_sheet": sheet})
    else:
        for outcome in outcomes:
            if outcome.kept:
                _say(_kept(outcome))
        _wrote(*(written if len(written) <= LISTED else ()), *([sheet] if sheet and written else []))
        places = f" to {written[0].parent}" if written else ""
        if len(outcomes) > 1:
            _say(
                f"{len(written)} of {len(outcomes)} photos written{places}"
                + (f", {len(failed)} failed" if failed else "")
            )
    if failed:
        raise typer.Exit(1)


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
    from directions import batch, run
    from directions.composite import Patch
    from directions.figures import strip
    from directions.photos import find_photos, save_image
    from directions.train import Task
    from flowgrad.models import load_model
    from flowgrad.models.guide import load_guide

    changes = {"iterations": iterations, "step_size": step_size, "eta": eta}
    chosen = _recipe(recipe, setting, **changes, intervals=intervals, augmentations=augmentations)
    chosen.settings(seed)
    batch.check_strength(strength)
    files = find_photos([photo])
    if len(files) > 1:
        raise UsageError(f"edit takes one photo; {photo} holds {len(files)}. For many, train a direction.")
    targets = [*batch.output_paths(files, output), *batch.output_paths(files, output, "-before-after")]
    for target in targets:
        batch.check_output(target, batch.resolved(files), overwrite)
    terminal, loaded = Terminal(as_json), load_model(model, device, precision)
    read = batch.read_photos(files, loaded, _align(align), terminal)
    photos = run.invert_photos(loaded, read, chosen, terminal)
    given = load_guide(guide, loaded.device) if guide else None
    task = Task.create(loaded, photos, text, guide=given, source=source, keep=keep or (), recipe=chosen, seed=seed)
    edited = run.edit(task, strength, terminal)
    if crop:
        save_image(edited.after, targets[0], overwrite)
    else:
        batch.write_composite(files[0], targets[0], [Patch(edited.difference, read.places[0])], overwrite)
    save_image(strip([edited.before, edited.after], ["photo", text]), targets[1], overwrite)
    _tell(
        as_json, {"files": targets, "effect": edited.effect}, f"effect {edited.effect:+.2f} log-odds of {task.target}"
    )
    if not as_json:
        _wrote(*targets)


@app.command()
def sample(
    count: Annotated[int, typer.Option(help="How many.", min=1)] = 16,
    direction: Annotated[str, typer.Option("--direction", "-d", help="NAME[:STRENGTH], + adds.")] = "",
    grid: Annotated[bool, typer.Option("--grid", help="Also draw a contact sheet.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("samples"),
    model: OwnModel = None,
    bank: BankFolder = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make new images with a model, with or without directions.

    flowgrad sample --count 16 --grid

    flowgrad sample --direction smiling:1+old:0.5 --seed 7

    Image i has the seed SEED + i, so the same face comes back with and without a direction.
    """
    from directions import batch
    from directions.figures import contact_sheet
    from directions.photos import save_image
    from flowgrad.models import load_model

    terminal, sheet = Terminal(as_json), output / "contact-sheet.png"
    found = batch.parse_mixture(direction) if direction else ()
    parts = batch.load_parts(found, Bank.default(bank), _model_name(model))
    if grid:
        refuse_existing(sheet, overwrite)
    loaded = load_model(model or (parts[0][0].info.model if parts else "faces64"), device, precision)
    control = batch.mixture(loaded, parts, terminal, force) if parts else None
    made = list(
        terminal.track(batch.sample_to_files(loaded, count, seed, control, output, overwrite), "sampling", count)
    )
    files = [path for path, _ in made]
    if grid:
        save_image(contact_sheet([image for _, image in made], title=direction), sheet, overwrite)
        files.append(sheet)
    _tell(as_json, {"files": files, "seeds": list(range(seed, seed + count))})
    if not as_json:
        _wrote(*(files if count <= LISTED else files[count:]))
        _say(f"{count} images written to {output}")


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
    from directions import batch, show
    from directions import evaluate as measuring
    from directions.photos import find_photos
    from flowgrad.models import load_model

    steps, terminal = _numbers(strengths, "--strengths"), Terminal(as_json)
    parts = batch.load_parts(batch.parse_mixture(direction), Bank.default(bank), _model_name(model))
    sheet, figures = output / "contact-sheet.png", output / "evaluation.json"
    for path in (sheet, figures):
        refuse_existing(path, overwrite)
    files = find_photos(photos)
    loaded = load_model(model or parts[0][0].info.model, device, precision)
    control = batch.mixture(loaded, parts, terminal, force, steps)
    read = batch.read_photos(files, loaded, _align(align), terminal)
    info = parts[0][0].info
    tools = measuring.load_tools(loaded, guide, judge)
    found = measuring.evaluate_photos(loaded, tools, control, read.images, info, steps, terminal)
    data = measuring.save_evaluation(found, files, sheet, figures, direction)
    _tell(as_json, data, show.evaluation_table(found.measured))
    if not as_json:
        _wrote(sheet, figures)


@app.command()
def ui(
    model: ModelName = "faces64",
    bank: BankFolder = None,
    host: Annotated[
        str, typer.Option(help="Address to serve on; the default is for this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to serve on.", min=1, max=65535)] = 7860,
    device: Device = "auto",
    precision: Precision = "auto",
) -> None:
    """Open a page to browse directions, try them on photos, and train new ones. Needs the extra `ui`.

    flowgrad ui --port 7860

    Photos stay in memory, on this machine. Stop it with Ctrl-C.
    """
    from directions import ui as page
    from directions.studio import Studio
    from flowgrad.models import load_model

    page.require()
    told = (*(("--model", model) if model != "faces64" else ()), *(("--bank", str(bank)) if bank else ()))
    studio = Studio(load_model(model, device, precision), Bank.default(bank), told)
    if host not in page.LOCAL:
        Terminal(False).warn("the page has no password: whoever reaches this address can use it and your bank")
    _say(f"http://{host}:{port}/  (Ctrl-C stops it)")
    page.serve(studio, host, port)


@app.command()
def benchmark(
    text: Annotated[str, typer.Option("--text", "-t", help="Whose score is differentiated.")] = "a smiling face",
    steps: Annotated[int, typer.Option(help="N, Euler steps.", min=2)] = 100,
    thresholds: Annotated[str, typer.Option(help="Values of xi.")] = "0.001,0.005,0.01",
    count: Annotated[int, typer.Option(help="Samples in the batch.", min=1)] = 4,
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

    from directions import show
    from directions.benchmark import compare_gradients
    from flowgrad.guidance.text import Contrast
    from flowgrad.models import load_model
    from flowgrad.models.guide import load_guide

    loaded, xi = load_model(model, device, precision), _numbers(thresholds, "--thresholds")
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
    _tell(as_json, [dataclasses.asdict(c) for c in found], show.plain_table(head, rows))


@app.command("train-guide")
def train_guide(
    images: Annotated[Path, typer.Argument(help="Folder or .zip of images.", show_default=False)],
    table: Annotated[Path, typer.Argument(help="CSV file: one row per image.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write the guide to.", show_default=False)],
    config: Annotated[str, typer.Option(help="Name or .yaml file: attributes, captions, network.")] = "faces64",
    minutes: Annotated[float | None, typer.Option(help="Train for so long (default 10).")] = None,
    steps: Annotated[int | None, typer.Option(help="Or for so many steps, which is repeatable.")] = None,
    start: Annotated[str | None, typer.Option("--from", help="Guide to begin with: name or .safetensors.")] = None,
    part: Annotated[str, typer.Option(help="Rows to train on: all, even or odd.")] = "all",
    resume: Annotated[bool, typer.Option(help="Go on from an interrupted run in the folder.")] = True,
    seed: Seed = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, ...")] = "cpu",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Train a guide, a small CLIP, for your own kind of images from a table of their labels.

    flowgrad train-guide faces.zip labels.csv --output my-guide --minutes 10

    Then: flowgrad train-direction photos/ --guide my-guide/model.safetensors --text ...
    """
    from directions import show
    from directions.guides import GuideJob, run_guide_job
    from flowgrad.training.config import load_guide_config

    if part not in ("all", "even", "odd"):
        raise UsageError(f"--part must be all, even or odd; got {part!r}")
    refuse_existing(output / "model.safetensors", overwrite)
    limit = 10.0 if minutes is None and steps is None else minutes
    chosen: Any = part
    job = GuideJob(images, table, load_guide_config(config), output, chosen, steps, limit, seed, device, resume, start)
    path, areas = run_guide_job(job, Terminal(as_json))
    rows = [(question, f"{area:.3f}") for question, area in areas.items()]
    _tell(as_json, {"guide": path, "auc": areas}, *([show.plain_table(("question", "AUC"), rows)] if rows else []))
    if not as_json:
        _wrote(path, output / "README.md")


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
    pairs: Annotated[int | None, typer.Option(help="How many pairs for --reflow (default 20000).")] = None,
    pair_steps: Annotated[int | None, typer.Option(help="Euler steps of each pair (default 50).")] = None,
    splits: Annotated[Path | None, typer.Option(help="CSV with columns file and split (train or test).")] = None,
    held_out: Annotated[float | None, typer.Option(help="Else this share is held out.")] = None,
    batch: Annotated[int | None, typer.Option(help="Images a step, over all processes.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At its highest.")] = None,
    schedule: Annotated[str | None, typer.Option(help="cosine (to zero at the end) or constant.")] = None,
    flips: Annotated[bool, typer.Option("--flips", help="Mirror half of the images.")] = False,
    augment: Annotated[bool, typer.Option("--augment", help="Small shifts, contrast, brightness.")] = False,
    evaluate_every: Annotated[int, typer.Option(help="Steps between held-out losses and sheets.")] = 500,
    compiled: Annotated[bool | None, typer.Option("--compile/--no-compile", help="Default: if long.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Write the weights in float16.")] = False,
    name: Annotated[str, typer.Option(help="Of the model; else from the folder.")] = "",
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

    With several processes: torchrun --nproc-per-node 4 cli.py train-flow ...
    """
    import dataclasses
    import shlex
    import sys

    from directions.flows import FlowJob, run_flow_job
    from flowgrad.training.flow import Budget
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
    _tell(
        as_json,
        dataclasses.asdict(result),
        f"held-out loss {result.held_out_start:.4f} -> {result.held_out_end:.4f} in {result.steps} steps",
    )
    if not as_json:
        _wrote(result.folder / "README.md", result.folder / "samples.png", result.folder)
        _say(f"next: flowgrad models add NAME {result.folder}, or --model {result.folder}")


# --- the bank ----------------------------------------------------------------------------------------------------


def _entries(entries: Iterable[Entry], bank: Bank, as_json: bool) -> None:
    from directions import show

    entries = tuple(entries)
    _tell(as_json, [_plain(entry) for entry in entries], show.bank_table(entries) if entries else "no direction found")
    if not as_json:
        _say(f"{len(entries)} directions; yours are in {bank.folder}")


def _plain(entry: Entry) -> dict[str, object]:
    info = {key: value for key, value in entry.info.as_dict().items() if key != "thumbnail"} if entry.info else None
    told = {"name": entry.name, "model": entry.model, "path": entry.path, "shipped": entry.shipped}
    return {**told, "preview": entry.preview, "error": entry.error, "info": info}


@bank_app.command("list")
def bank_list(model: OwnModel = None, bank: BankFolder = None, as_json: Json = False) -> None:
    """List the directions of your bank and of the one that ships."""
    found = Bank.default(bank)
    _entries(found.list(model), found, as_json)


@bank_app.command("search")
def bank_search(
    words: Annotated[list[str], typer.Argument(help="All must occur: in name, texts, tags or description.")],
    bank: BankFolder = None,
    as_json: Json = False,
) -> None:
    """Find directions by words, best match first."""
    found = Bank.default(bank)
    _entries(found.search(words), found, as_json)


@bank_app.command("show")
def bank_show(name: Name, model: OwnModel = None, bank: BankFolder = None, as_json: Json = False) -> None:
    """Show a direction: texts, what each strength does, side effects, identity, and how it was trained."""
    from directions import show

    entry = Bank.default(bank).get(name, model)
    _tell(as_json, _plain(entry), show.direction_card(entry))


@bank_app.command("path")
def bank_path(
    name: Annotated[
        str, typer.Argument(help="A direction; without one, the bank.", autocompletion=_complete_name)
    ] = "",
    model: OwnModel = None,
    bank: BankFolder = None,
) -> None:
    """Print where a direction, or your bank, is."""
    found = Bank.default(bank)
    _say(str(found.get(name, model).path if name else found.folder))


@bank_app.command("remove")
def bank_remove(name: Name, model: OwnModel = None, bank: BankFolder = None, as_json: Json = False) -> None:
    """Remove a direction of yours; `bank restore` brings it back."""
    entry = Bank.default(bank).remove(name, model)
    _done(f"removed {entry.path}; `flowgrad bank restore {entry.name}` brings it back", entry, as_json)


@bank_app.command("restore")
def bank_restore(
    name: Annotated[str, typer.Argument(help="Name of a removed direction.", show_default=False)],
    model: OwnModel = None,
    bank: BankFolder = None,
    as_json: Json = False,
) -> None:
    """Bring back what was last removed or replaced under a name."""
    entry = Bank.default(bank).restore(name, model)
    _done(f"restored {entry.path}", entry, as_json)


@bank_app.command("rename")
def bank_rename(
    name: Name,
    new_name: Annotated[str, typer.Argument(show_default=False)],
    model: OwnModel = None,
    bank: BankFolder = None,
    as_json: Json = False,
) -> None:
    """Give a direction of yours another name."""
    entry = Bank.default(bank).rename(name, new_name, model)
    _done(f"renamed {name} to {entry.path}", entry, as_json)


@bank_app.command("import")
def bank_import(
    file: Annotated[Path, typer.Argument(help=f"A direction file ({SUFFIX}).", show_default=False)],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Default: the file's name.")] = None,
    bank: BankFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Check a direction file from elsewhere and put it into your bank."""
    entry = Bank.default(bank).import_file(file, name, overwrite)
    _done(f"wrote {entry.path}", entry, as_json)


@bank_app.command("export")
def bank_export(
    name: Name,
    destination: Annotated[Path, typer.Argument(help=f"A folder, or a {SUFFIX} file.", show_default=False)],
    model: OwnModel = None,
    bank: BankFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Copy a direction to a file or a folder, to pass it on."""
    path = Bank.default(bank).export(name, destination, model, overwrite)
    _tell(as_json, {"file": path}, f"wrote {path}")


@bank_app.command("gallery")
def bank_gallery(
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file.")] = Path("gallery.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "Directions",
    model: OwnModel = None,
    bank: BankFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the bank as one HTML file to browse: previews inside, no network needed."""
    from directions.gallery import write_gallery

    path = write_gallery(Bank.default(bank).list(model), output, title, overwrite)
    _tell(as_json, {"file": path}, f"wrote {path}")


@bank_app.command("matrix")
def bank_matrix(
    names: Annotated[list[str] | None, typer.Argument(help="Directions; default: all of the model.")] = None,
    model: ModelName = "faces64",
    count: Annotated[int, typer.Option(help="Samples to measure on.", min=1)] = 16,
    guide: GuideName = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("interference"),
    bank: BankFolder = None,
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Measure how much each direction changes the others' texts: what composes well, and what does not.

    flowgrad bank matrix smiling old feminine

    Writes matrix.csv and a heat map, matrix.png.
    """
    import numpy as np

    from directions import interference, show
    from directions.latents import join, sample_images
    from directions.train import HELD_OUT_SEED
    from flowgrad.models import load_model
    from flowgrad.models.guide import load_guide

    found, terminal = Bank.default(bank), Terminal(as_json)
    own = _model_name(model)
    entries = [found.get(name, own) for name in names] if names else list(found.list(own))
    interference.texts_of(entries)  # what cannot be measured is refused before anything is loaded
    table, picture = output / "matrix.csv", output / "matrix.png"
    for path in (table, picture):
        refuse_existing(path, overwrite)
    loaded = load_model(model, device, precision)
    network = load_guide(guide or loaded.config.guide, loaded.device)
    samples = join(sample_images(loaded, count, HELD_OUT_SEED))
    rows = interference.measure_rows(loaded, network, entries, samples, force)
    changes = np.stack(list(terminal.track(rows, "measuring", len(entries))))
    measured = interference.Interference(tuple(entry.name for entry in entries), changes)
    interference.save_table(measured, table)
    interference.save_heat_map(measured, picture)
    shown = [(name, *(f"{v:+.2f}" for v in row)) for name, row in zip(measured.names, changes, strict=True)]
    data = {"names": measured.names, "changes": changes.tolist(), "files": [table, picture]}
    _tell(as_json, data, show.plain_table(("applied", *measured.names), shown))
    if not as_json:
        _wrote(table, picture)


Repository = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the Hugging Face hub.", show_default=False)]


@bank_app.command("push")
def bank_push(
    repository: Repository,
    names: Annotated[list[str] | None, typer.Argument(help="Directions; default: all of yours.")] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made now.")] = False,
    model: OwnModel = None,
    bank: BankFolder = None,
    as_json: Json = False,
) -> None:
    """Share directions in a Hugging Face repository, with a README. Log in first: `hf auth login`."""
    from directions.hub import push

    found = Bank.default(bank)
    entries = [found.get(name, model) for name in names] if names else [e for e in found.list(model) if not e.shipped]
    url = push(entries, repository, private=private)
    _tell(as_json, {"url": url, "names": [e.name for e in entries]}, f"{len(entries)} directions pushed to {url}")


@bank_app.command("pull")
def bank_pull(
    repository: Repository,
    names: Annotated[list[str] | None, typer.Argument(help="Directions; default: all there are.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    bank: BankFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fetch directions from a Hugging Face repository, check them, and put them into your bank."""
    from directions.hub import pull

    results = pull(repository, Bank.default(bank), names or (), overwrite=overwrite, revision=revision)
    found = list(Terminal(as_json).track(results, "fetching"))
    errors = [each for each in found if isinstance(each, FlowgradError)]
    entries = [each for each in found if isinstance(each, Entry)]
    if as_json:
        _tell(True, {"directions": [_plain(each) for each in entries], "errors": [str(each) for each in errors]})
    else:
        _wrote(*(each.path for each in entries))
        _say(f"{len(entries)} of {len(found)} directions put into {Bank.default(bank).folder}")
    for each in errors:
        _failed(str(each), 1)
    if errors:
        raise typer.Exit(1)


def _done(text: str, entry: Entry, as_json: bool) -> None:
    if as_json:
        _tell(True, _plain(entry))
    else:
        _say(text)


# --- models ------------------------------------------------------------------------------------------------------


@models_app.command("list")
def models_list(as_json: Json = False) -> None:
    """List the models that have a configuration."""
    from directions import show
    from directions.catalogue import list_models

    found = list_models()
    rows = [(m["name"], m["title"], f"{m['size']} px", _where(m), "flowgrad" if m["shipped"] else "you") for m in found]
    _tell(as_json, found, show.plain_table(("name", "title", "images", "weights", "from"), rows))


def _where(model: "Mapping[str, Any]") -> str:
    return "yes" if model["weights"] else "on the hub" if model["hub"] else "missing"


@models_app.command("add")
def models_add(
    name: Annotated[str, typer.Argument(help="Its name from now on.", show_default=False)],
    path: Annotated[
        Path, typer.Argument(help="A model's folder, its .yaml file, or with --like its weights.", show_default=False)
    ],
    like: Annotated[str, typer.Option(help="PATH holds weights alone: the model whose configuration fits.")] = "",
    guide: Annotated[str, typer.Option(help="Its guide from now on: name or file.")] = "",
    subject: Annotated[str, typer.Option(help='What its pictures show: "a shoe".')] = "",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Add a model to your own ones (FLOWGRAD_MODELS), so that --model NAME finds it.

    flowgrad models add shoes my-shoes --guide shoe-guide/model.safetensors --subject "a shoe"

    flowgrad models add celeba checkpoint_10.pth --like rf-celebahq

    What train-flow made is copied. Checkpoints of others are large: they stay where they are, and are referred to.
    """
    from flowgrad.models import load_config
    from flowgrad.models.own import add_model

    folder = add_model(name, path, guide, subject, overwrite, like)
    weights = load_config(name).weights
    stays = "" if weights == "." else f"; its weights stay where they are: {weights}"
    _answer(as_json, {"name": name, "folder": folder, "weights": weights}, f"wrote {folder}{stays}")


@models_app.command("remove")
def models_remove(
    name: Annotated[str, typer.Argument(help="A model of yours.", show_default=False)], as_json: Json = False
) -> None:
    """Remove a model of yours; its folder goes to the trash, whence `models add` brings it back."""
    from flowgrad.models.own import remove_model

    folder = remove_model(name)
    _answer(
        as_json,
        {"name": name, "folder": folder},
        f"removed {name}; `flowgrad models add {name} {folder}` brings it back",
    )


@models_app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="Name, .yaml file or folder.")] = "faces64", as_json: Json = False
) -> None:
    """Show a model's configuration, checked, and where its weights are."""
    from directions import show
    from flowgrad.models import load_config

    config = load_config(name)
    place = "fetched from the hub when first used" if config.on_hub else f"missing; put them at {config.candidates[0]}"
    data = {**config.model_dump(), "weights_path": config.weights_path if config.weights_path.exists() else place}
    rows = [(key, "; ".join(value) if isinstance(value, tuple) else str(value)) for key, value in data.items()]
    _tell(as_json, data, show.plain_table(("key", "value"), rows))


@models_app.command("gate")
def models_gate(
    images: Annotated[Path, typer.Argument(help="Folder or .zip of the model's test photos.", show_default=False)],
    table: Annotated[Path | None, typer.Option(help="CSV file with columns file and split; default: all.")] = None,
    split: Annotated[str, typer.Option(help="Rows of the table to measure on.")] = "test",
    count: Annotated[int | None, typer.Option(help="So many of them, drawn at random.", min=1)] = None,
    model: ModelName = "faces64",
    bank: BankFolder = None,
    device: Device = "auto",
    precision: Precision = "auto",
    as_json: Json = False,
) -> None:
    """Measure on test photos what is usual for a model: the lines `gate:` of its configuration.

    flowgrad models gate faces.zip --table labels.csv --split test

    A photo outside these ranges gets a warning: the model does not know such an image.
    """
    from directions.gate import measure_photos, photo_files, ranges_of, usual_grid
    from flowgrad.models import load_model

    files = photo_files(images, table, split, count)
    loaded = load_model(model, device, precision)
    found = measure_photos(loaded, images, files, usual_grid(loaded, Bank.default(bank)))
    measured = list(Terminal(as_json).track(found, "measuring", len(files)))
    ranges = ranges_of(measured)
    lines = [f"gate:  # of {len(measured)} photos"] + [
        f"  {k}: [{low:g}, {high:g}]" for k, (low, high) in ranges.items()
    ]
    _tell(as_json, {"photos": len(measured), "gate": ranges}, "\n".join(lines))


@models_app.command("check")
def models_check(
    name: Annotated[str, typer.Argument(help="Name, .yaml file or folder.")] = "faces64",
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Picture of four samples to write.")] = None,
    seed: Seed = 0,
    device: Device = "auto",
    precision: Precision = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Load a model, draw four samples, invert and return one, and say whether it is fit for directions.

    flowgrad models check faces64 --output samples.png

    Exit code 1 if it is not.
    """
    from directions import show
    from directions.figures import contact_sheet
    from directions.fitness import check_model
    from directions.photos import save_image
    from flowgrad.models import load_model

    if output:
        refuse_existing(output, overwrite)
    loaded, terminal = load_model(name, device, precision), Terminal(as_json)
    found, samples = next(iter(terminal.track((check_model(loaded, seed) for _ in range(1)), "checking")))
    _tell(as_json, found.as_dict(), show.fitness_table(found))
    if output:
        save_image(contact_sheet(samples, title=found.model), output, overwrite)
    if not as_json:
        _wrote(*([output] if output else []))
        _say(found.verdict)
    if found.problems:
        raise typer.Exit(1)


Before = Annotated[str, typer.Option(help="A model to compare with: name or folder.")]
TestPhotos = Annotated[Path | None, typer.Option(help="Folder or archive of photos that it was not trained on.")]
Splits = Annotated[Path | None, typer.Option(help="CSV with columns file and split: take its test rows.")]
Log = Annotated[Path | None, typer.Option(help="Log of its training (JSON lines), for the curve.")]
SampleCount = Annotated[int, typer.Option(help="Samples to judge.", min=1)]


@models_app.command("convert")
def models_convert(
    folder: Annotated[Path, typer.Argument(help="A diffusers UNet2DModel's folder.", show_default=False)],
    destination: Annotated[
        str, typer.Argument(help="A name (the shipped weights of that name), or a folder.", show_default=False)
    ],
    before: Before = "",
    photos: TestPhotos = None,
    splits: Splits = None,
    log: Log = None,
    count: SampleCount = 1000,
    device: Device = "auto",
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Convert a UNet2DModel's weights to fp16, as they ship; with what to compare them with, measure them too.

    flowgrad models convert checkpoints/faces64 faces64 --overwrite

    With --before, --photos or --log, the card gets the section, sheets and curve of `models measure`.
    """
    from directions.portrait import PortraitJob, gather, portray
    from flowgrad.models import load_config
    from flowgrad.models.convert import convert_unet
    from flowgrad.models.diffusers_unet import WEIGHTS
    from flowgrad.resources import resource

    target = resource("weights") / destination if Path(destination).name == destination else Path(destination)
    refuse_existing(target / WEIGHTS, overwrite)
    terminal, job = Terminal(as_json), PortraitJob(before, photos, splits, log, count, device)
    config = load_config(destination) if before or photos or log else None
    config = config and config.model_copy(update={"weights": str(target.resolve())})  # whatever else has its name
    material = gather(job, config, terminal) if config else None  # read before it is replaced
    path = convert_unet(folder, target)
    found = portray(config, material, job, terminal) if config and material else {}
    _answer(as_json, {"file": path, **_plain_portraits(found)}, f"wrote {path}")
    if found and not as_json:
        _tell(False, None, _show_portraits(found))


@models_app.command("measure")
def models_measure(
    name: Annotated[str, typer.Argument(help="Name, .yaml file or folder.", show_default=False)],
    before: Before = "",
    photos: TestPhotos = None,
    splits: Splits = None,
    log: Log = None,
    count: SampleCount = 1000,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure what a model draws, and write that into its card: straightness, held-out loss, faces, a sheet.

    flowgrad models measure straight-shoes --before shoes --count 256
    """
    from directions.portrait import PortraitJob, gather, portray
    from flowgrad.models import load_config

    job, config = PortraitJob(before, photos, splits, log, count, device), load_config(name)
    terminal = Terminal(as_json)
    found = portray(config, gather(job, config, terminal), job, terminal)
    _tell(as_json, _plain_portraits(found), _show_portraits(found))
    if not as_json:
        _wrote(*(config.card_folder / file for file in ("README.md", "samples.jpg") if config.card_folder))


def _show_portraits(found: "Mapping[str, Portrait]") -> "Table":
    from directions import show
    from directions.portrait import portrait_rows

    return show.plain_table(("", *found), portrait_rows(list(found.values())))


def _plain_portraits(found: "Mapping[str, Portrait]") -> dict[str, object]:
    import dataclasses

    return {name: dataclasses.asdict(portrait) for name, portrait in found.items()}


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import PackageNotFoundError
        from importlib.metadata import version as installed

        try:
            _say(f"flowgrad {installed('flowgrad')}")
        except PackageNotFoundError:
            _say("flowgrad, from a clone that is not installed")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Train a direction from ten photos and a sentence, then apply it to any photo."""


def main() -> None:
    """Run the command line."""
    gc.set_threshold(10_000)  # imports make many objects and no garbage: looking for it costs a tenth of the start
    app()


if __name__ == "__main__":
    main()
