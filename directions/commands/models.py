"""Commands of `flowgrad models`: the generative models that directions steer."""

from pathlib import Path
from typing import Annotated

import typer

from directions.bank.bank import Bank
from directions.commands import options
from directions.commands.terminal import Terminal, answer, wrote
from flowgrad.errors import UsageError
from flowgrad.files import refuse_existing
from flowgrad.resources import DEFAULT_MODEL

app = typer.Typer(no_args_is_help=True, help="The generative models that directions steer.")

Before = Annotated[
    str, typer.Option(help="A model to compare with: name or folder.", callback=options.known_model_or_folder)
]
TestPhotos = Annotated[Path | None, typer.Option(help="Folder or archive of photos not trained on.", exists=True)]
Splits = Annotated[Path | None, typer.Option(help="CSV with columns file and split: take its test rows.", exists=True)]
Log = Annotated[Path | None, typer.Option(help="Log of its training (JSON lines), for the curve.", exists=True)]
SampleCount = Annotated[int, typer.Option(help="Samples to judge.", min=1)]


@app.command("list")
def models_list(as_json: options.Json = False) -> None:
    """List the models that have a configuration."""
    from directions.commands import tables
    from directions.own_models.catalogue import list_models

    listed = list_models()
    rows = []
    for model in listed:
        weights = "yes" if model["weights"] else "on the hub" if model["hub"] else "missing"
        origin = "flowgrad" if model["shipped"] else "you"
        rows.append((model["name"], model["title"], f"{model['size']} px", weights, origin))
    answer(as_json, listed, tables.plain_table(("name", "title", "images", "weights", "from"), rows))


@app.command("add")
def models_add(
    name: Annotated[str, typer.Argument(help="Its name from now on.", show_default=False)],
    path: Annotated[
        Path, typer.Argument(help="A model's folder, its .yaml file, or with --like its weights.", show_default=False)
    ],
    like: Annotated[
        str,
        typer.Option(
            help="PATH holds weights alone: the model whose configuration fits.", callback=options.known_model
        ),
    ] = "",
    guide: Annotated[str, typer.Option(help="Its guide from now on: name or file.", callback=options.known_guide)] = "",
    subject: Annotated[str, typer.Option(help='What its pictures show: "a shoe".')] = "",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Add a model to your own ones (FLOWGRAD_MODELS), so that --model NAME finds it.

    flowgrad models add shoes my-shoes --guide shoe-guide/model.safetensors --subject "a shoe"

    flowgrad models add celeba checkpoint_10.pth --like rf-celebahq

    What train-flow made is copied. Checkpoints of others are large: they stay where they are, and are referred to.
    """
    from directions.own_models.folder import add_model
    from flowgrad.model_config import load_config

    folder = add_model(name, path, guide, subject, overwrite, like)
    weights = load_config(name).weights
    stays = "" if weights == "." else f"; its weights stay where they are: {weights}"
    answer(as_json, {"name": name, "folder": folder, "weights": weights}, f"wrote {folder}{stays}")


@app.command("remove")
def models_remove(
    name: Annotated[str, typer.Argument(help="A model of yours.", show_default=False)], as_json: options.Json = False
) -> None:
    """Remove a model of yours; its folder goes to the trash, whence `models add` brings it back."""
    from directions.own_models.folder import remove_model

    folder = remove_model(name)
    answer(
        as_json,
        {"name": name, "folder": folder},
        f"removed {name}; `flowgrad models add {name} {folder}` brings it back",
    )


@app.command("show")
def models_show(name: options.KnownModel = DEFAULT_MODEL, as_json: options.Json = False) -> None:
    """Show a model's configuration, checked, and where its weights are."""
    from directions.commands import tables
    from flowgrad.model_config import load_config

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
    model: options.ModelName = DEFAULT_MODEL,
    bank: options.BankFolder = None,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure on test photos what is usual for a model: the lines `gate:` of its configuration.

    flowgrad models gate faces.zip --table labels.csv --split test

    A photo outside these ranges gets a warning: the model does not know such an image.
    """
    from directions.apply.familiarity import measure_photos, photo_files, ranges_of, usual_grid
    from flowgrad.models import load_model

    files = photo_files(images, table, split, count)
    loaded = load_model(model, device, precision)
    measured = measure_photos(loaded, images, files, usual_grid(loaded, Bank.default(bank)))
    fits = list(Terminal(as_json).track(measured, "measuring", len(files)))
    ranges = ranges_of(fits)
    lines = [f"gate:  # of {len(fits)} photos"] + [f"  {k}: [{low:g}, {high:g}]" for k, (low, high) in ranges.items()]
    answer(as_json, {"photos": len(fits), "gate": ranges}, "\n".join(lines))


@app.command("check")
def models_check(
    name: options.KnownModel = DEFAULT_MODEL,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Picture of four samples to write.")] = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Load a model, draw four samples, invert and return one, and say whether it is fit for directions.

    flowgrad models check faces128 --output samples.png

    Exit code 1 if it is not.
    """
    from directions.commands import tables
    from directions.figures import contact_sheet
    from directions.measure.model_check import check_model
    from directions.photo.writing import save_image
    from directions.progress import timed
    from flowgrad.models import load_model

    if output:
        refuse_existing(output, overwrite)
    loaded = load_model(name, device, precision)
    fitness, samples = timed(Terminal(as_json), "checking", lambda: check_model(loaded, seed))
    if output:
        save_image(contact_sheet(samples, title=fitness.model), output, overwrite)
    table = tables.plain_table(("measured", fitness.model), fitness.rows())
    data, picture = {**vars(fitness), "verdict": fitness.verdict}, wrote(output) if output else ""
    answer(as_json, data, table, picture, fitness.verdict)
    if fitness.problems:
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
    device: options.Device = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Convert a UNet2DModel's weights to fp16, as they ship; with what to compare them with, measure them too.

    flowgrad models convert checkpoints/faces64 faces64 --overwrite

    With --before, --photos or --log, the card gets the section, sheets and curve of `models measure`.
    """
    _refuse_lone(splits, photos)

    from directions.commands import tables
    from directions.measure.model_card import gather, portrait_rows, portray
    from flowgrad.model_config import load_config
    from flowgrad.models.diffusers_unet import WEIGHTS, convert_unet
    from flowgrad.resources import resource

    shipped = resource("weights") / destination
    target = shipped if Path(destination).name == destination and shipped.is_dir() else Path(destination)
    refuse_existing(target / WEIGHTS, overwrite)
    if not (before or photos or log):
        path = convert_unet(folder, target)
        answer(as_json, {"file": path}, f"wrote {path}")
        return
    terminal = Terminal(as_json)
    config = load_config(destination).model_copy(update={"weights": str(target.resolve())})  # whatever has its name
    material = gather(config, before, photos, splits, log, device, terminal)  # read before it is replaced
    path = convert_unet(folder, target)
    portraits = portray(config, material, device, terminal, count)
    table = tables.plain_table(("", *portraits), portrait_rows(portraits), numbers=True)
    answer(as_json, {"file": path, **portraits}, f"wrote {path}", table)


@app.command("measure")
def models_measure(
    name: options.KnownModel,
    before: Before = "",
    photos: TestPhotos = None,
    splits: Splits = None,
    log: Log = None,
    count: SampleCount = 1000,
    steps: Annotated[int, typer.Option(help="Euler steps of each sample.", min=1)] = 25,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Measure what a model draws, and write that into its card: straightness, held-out loss, faces, a sheet.

    flowgrad models measure straight-shoes --before shoes --count 256
    """
    _refuse_lone(splits, photos)

    from directions.commands import tables
    from directions.measure.model_card import gather, portrait_rows, portray
    from flowgrad.model_config import load_config

    terminal, config = Terminal(as_json), load_config(name)
    material = gather(config, before, photos, splits, log, device, terminal)
    portraits = portray(config, material, device, terminal, count, steps)
    table = tables.plain_table(("", *portraits), portrait_rows(portraits), numbers=True)
    answer(as_json, portraits, table, wrote(*(material.folder / file for file in ("README.md", "samples.jpg"))))


def _refuse_lone(splits: Path | None, photos: Path | None) -> None:
    if splits and not photos:
        raise UsageError("--splits says which of --photos to take: give both")
