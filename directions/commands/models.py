"""Commands of `flowgrad models`: the generative models that directions steer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from directions.bank.bank import Bank
from directions.commands.options import (
    BankFolder,
    Device,
    Json,
    ModelName,
    Overwrite,
    Precision,
    Seed,
)
from directions.commands.terminal import Terminal, answer, wrote
from flowgrad.files import refuse_existing

if TYPE_CHECKING:
    from rich.table import Table

    from directions.measure.model_card import Portrait

app = typer.Typer(no_args_is_help=True, help="The generative models that directions steer.")

Before = Annotated[str, typer.Option(help="A model to compare with: name or folder.")]
TestPhotos = Annotated[Path | None, typer.Option(help="Folder or archive of photos that it was not trained on.")]
Splits = Annotated[Path | None, typer.Option(help="CSV with columns file and split: take its test rows.")]
Log = Annotated[Path | None, typer.Option(help="Log of its training (JSON lines), for the curve.")]
SampleCount = Annotated[int, typer.Option(help="Samples to judge.", min=1)]


@app.command("list")
def models_list(as_json: Json = False) -> None:
    """List the models that have a configuration."""
    from directions.commands import tables
    from directions.own_models.catalogue import list_models

    found = list_models()
    rows = [(m["name"], m["title"], f"{m['size']} px", _where(m), "flowgrad" if m["shipped"] else "you") for m in found]
    answer(as_json, found, tables.plain_table(("name", "title", "images", "weights", "from"), rows))


def _where(model: "Mapping[str, Any]") -> str:
    return "yes" if model["weights"] else "on the hub" if model["hub"] else "missing"


@app.command("add")
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
    answer(as_json, {"name": name, "folder": folder, "weights": weights}, f"wrote {folder}{stays}")


@app.command("remove")
def models_remove(
    name: Annotated[str, typer.Argument(help="A model of yours.", show_default=False)], as_json: Json = False
) -> None:
    """Remove a model of yours; its folder goes to the trash, whence `models add` brings it back."""
    from flowgrad.models.own import remove_model

    folder = remove_model(name)
    answer(
        as_json,
        {"name": name, "folder": folder},
        f"removed {name}; `flowgrad models add {name} {folder}` brings it back",
    )


@app.command("show")
def models_show(
    name: Annotated[str, typer.Argument(help="Name, .yaml file or folder.")] = "faces64", as_json: Json = False
) -> None:
    """Show a model's configuration, checked, and where its weights are."""
    from directions.commands import tables
    from flowgrad.models import load_config

    config = load_config(name)
    place = "fetched from the hub when first used" if config.on_hub else f"missing; put them at {config.candidates[0]}"
    data = {**config.model_dump(), "weights_path": config.weights_path if config.weights_path.exists() else place}
    rows = [(key, "; ".join(value) if isinstance(value, tuple) else str(value)) for key, value in data.items()]
    answer(as_json, data, tables.plain_table(("key", "value"), rows))


@app.command("gate")
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
    from directions.apply.familiarity import measure_photos, photo_files, ranges_of, usual_grid
    from flowgrad.models import load_model

    files = photo_files(images, table, split, count)
    loaded = load_model(model, device, precision)
    found = measure_photos(loaded, images, files, usual_grid(loaded, Bank.default(bank)))
    measured = list(Terminal(as_json).track(found, "measuring", len(files)))
    ranges = ranges_of(measured)
    lines = [f"gate:  # of {len(measured)} photos"] + [
        f"  {k}: [{low:g}, {high:g}]" for k, (low, high) in ranges.items()
    ]
    answer(as_json, {"photos": len(measured), "gate": ranges}, "\n".join(lines))


@app.command("check")
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
    from directions.commands import tables
    from directions.figures import contact_sheet
    from directions.measure.model_check import check_model
    from directions.photo.writing import save_image
    from flowgrad.models import load_model

    if output:
        refuse_existing(output, overwrite)
    loaded, terminal = load_model(name, device, precision), Terminal(as_json)
    found, samples = next(iter(terminal.track((check_model(loaded, seed) for _ in range(1)), "checking")))
    if output:
        save_image(contact_sheet(samples, title=found.model), output, overwrite)
    files = wrote(output) if output else ""
    answer(as_json, found.as_dict(), tables.fitness_table(found), files, found.verdict)
    if found.problems:
        raise typer.Exit(1)


@app.command("convert")
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
    from directions.measure.model_card import PortraitJob, gather, portray
    from flowgrad.models import load_config
    from flowgrad.models.convert import convert_unet
    from flowgrad.models.diffusers_unet import WEIGHTS
    from flowgrad.resources import resource

    shipped = resource("weights") / destination
    target = shipped if Path(destination).name == destination and shipped.is_dir() else Path(destination)
    refuse_existing(target / WEIGHTS, overwrite)
    terminal, job = Terminal(as_json), PortraitJob(before, photos, splits, log, count, device)
    config = load_config(destination) if before or photos or log else None
    config = config and config.model_copy(update={"weights": str(target.resolve())})  # whatever else has its name
    material = gather(job, config, terminal) if config else None  # read before it is replaced
    path = convert_unet(folder, target)
    found = portray(config, material, job, terminal) if config and material else {}
    answer(as_json, {"file": path, **_plain_portraits(found)}, f"wrote {path}")
    if found and not as_json:
        answer(False, None, _show_portraits(found))


@app.command("measure")
def models_measure(
    name: Annotated[str, typer.Argument(help="Name, .yaml file or folder.", show_default=False)],
    before: Before = "",
    photos: TestPhotos = None,
    splits: Splits = None,
    log: Log = None,
    count: SampleCount = 1000,
    steps: Annotated[int | None, typer.Option(help="Euler steps of each sample (default 25).")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure what a model draws, and write that into its card: straightness, held-out loss, faces, a sheet.

    flowgrad models measure straight-shoes --before shoes --count 256
    """
    from directions.measure.model_card import PortraitJob, gather, portray
    from flowgrad.models import load_config

    job, config = PortraitJob(before, photos, splits, log, count, device, steps), load_config(name)
    terminal = Terminal(as_json)
    found = portray(config, gather(job, config, terminal), job, terminal)
    answer(
        as_json,
        _plain_portraits(found),
        _show_portraits(found),
        wrote(*(config.card_folder / file for file in ("README.md", "samples.jpg") if config.card_folder)),
    )


def _show_portraits(found: "Mapping[str, Portrait]") -> "Table":
    from directions.commands import tables
    from directions.measure.model_card import portrait_rows

    return tables.plain_table(("", *found), portrait_rows(list(found.values())))


def _plain_portraits(found: "Mapping[str, Portrait]") -> dict[str, object]:
    import dataclasses

    return {name: dataclasses.asdict(portrait) for name, portrait in found.items()}
