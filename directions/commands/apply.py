"""Commands that apply directions: `apply-direction` to photos, `sample` to new images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from directions.bank.bank import Bank
from directions.commands.errors import failed
from directions.commands.options import (
    Align,
    BankFolder,
    Crop,
    Device,
    DirectionsModel,
    Force,
    Json,
    KeepIdentity,
    Mixture,
    Overwrite,
    Photos,
    Precision,
    Seed,
    Strength,
    Strip,
    model_name,
    numbers,
)
from directions.commands.terminal import Terminal, answer, wrote
from flowgrad.files import refuse_existing

if TYPE_CHECKING:
    from directions.apply.files import Outcome

app = typer.Typer()
LISTED = 10  # files that are named one by one when a command ends


@app.command("apply-direction")
def apply_direction(
    direction: Mixture,
    photos: Photos,
    strength: Strength = 1.0,
    strengths: Strip = None,
    grid: Annotated[bool, typer.Option("--grid", help="Also draw a contact sheet of all photos.")] = False,
    face: Annotated[int | None, typer.Option(help="Only this face, counted from the left.", min=1)] = None,
    keep_identity: KeepIdentity = None,
    crop: Crop = False,
    lossless: Annotated[bool, typer.Option("--lossless", help="Write PNG, whatever the photo was.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("edited"),
    model: DirectionsModel = None,
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
    from directions.bank.mixture import load_parts, parse_mixture
    from directions.photo.beside import process_beside
    from directions.photo.reading import find_photos

    steps, terminal = numbers(strengths, "--strengths") if strengths else (), Terminal(as_json)
    parts = load_parts(parse_mixture(direction, strength), Bank.default(bank), model_name(model))
    files = find_photos(photos)
    with process_beside(align) as beside:
        from directions.apply import files as editing
        from directions.apply.steer import common_inversion
        from flowgrad.models import load_model

        inversion = common_inversion([part for part, _ in parts])
        wanted = editing.Wanted(steps, crop, face, align, overwrite, keep_identity, inversion, sheet=grid)
        targets = editing.output_paths(files, output, "-strip" if steps else "", lossless)
        sheet = output / "contact-sheet.png" if grid else None
        if sheet:
            editing.check_output(sheet, editing.resolved(files), overwrite)
        loaded = load_model(model or parts[0][0].info.model, device, precision)
        control = editing.mixture(loaded, parts, terminal, force, steps or (1.0,))
        edited = editing.apply_to_files(loaded, control, files, targets, wanted, beside)
        outcomes = list(terminal.track(edited, "editing", len(files)))
        if sheet:
            sheet = editing.save_sheet(outcomes, steps, direction, sheet, overwrite)
        _report(outcomes, sheet, terminal, as_json)


def _report(outcomes: "list[Outcome]", sheet: Path | None, terminal: Terminal, as_json: bool) -> None:
    """Say what became of each photo; raise what went wrong where there was one, else exit with 1 if any failed."""
    errors = [outcome.error for outcome in outcomes if outcome.error]
    if len(outcomes) == 1 and errors:
        raise errors[0]
    for outcome in outcomes:
        if outcome.warning:
            terminal.warn(f"{outcome.photo.name}: {outcome.warning}")
    for error in errors:
        failed(f"{error}")
    written = [outcome.output for outcome in outcomes if outcome.output]
    listed = [*(written if len(written) <= LISTED else ()), *([sheet] if sheet else [])]
    answer(
        as_json,
        {"files": [_as_json(outcome) for outcome in outcomes], "contact_sheet": sheet},
        *(_kept(outcome) for outcome in outcomes if outcome.kept),
        wrote(*listed),
        _count(outcomes, written, len(errors)) if len(outcomes) > 1 else "",
    )
    if errors:
        raise typer.Exit(1)


def _as_json(outcome: "Outcome") -> dict[str, object]:
    error = outcome.error and str(outcome.error)
    identity = [{"share": share, "distance": distance} for share, distance in outcome.kept]
    result = {"photo": outcome.photo, "output": outcome.output, "error": error, "warning": outcome.warning}
    return {**result, **({"identity": identity} if identity else {})}


def _kept(outcome: "Outcome") -> str:
    """What the identity budget left of the strength asked for, face by face."""
    faces = (f"{share:.0%} of the strength, identity distance {distance:.2f}" for share, distance in outcome.kept)
    return f"{outcome.photo.name}: {'; '.join(faces)}"


def _count(outcomes: "list[Outcome]", written: list[Path], failures: int) -> str:
    folder = f" to {written[0].parent}" if written else ""
    return f"{len(written)} of {len(outcomes)} photos written{folder}" + (f", {failures} failed" if failures else "")


@app.command()
def sample(
    count: Annotated[int, typer.Option(help="How many.", min=1)] = 16,
    direction: Annotated[str, typer.Option("--direction", "-d", help="NAME[:STRENGTH], + adds.")] = "",
    grid: Annotated[bool, typer.Option("--grid", help="Also draw a contact sheet.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("samples"),
    model: DirectionsModel = None,
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

    Image i of a seed is the same whatever --count is, with a direction and without one.
    """
    from directions.bank.mixture import load_parts, parse_mixture

    terminal, sheet = Terminal(as_json), output / "contact-sheet.png"
    parts = load_parts(parse_mixture(direction) if direction else (), Bank.default(bank), model_name(model))
    if grid:
        refuse_existing(sheet, overwrite)

    from directions.apply import files as editing
    from directions.figures import contact_sheet
    from directions.photo.writing import save_image
    from flowgrad.models import load_model

    loaded = load_model(model or (parts[0][0].info.model if parts else "faces64"), device, precision)
    control = editing.mixture(loaded, parts, terminal, force) if parts else None
    samples = editing.sample_to_files(loaded, count, seed, control, output, overwrite)
    files, images = map(list, zip(*terminal.track(samples, "sampling", count), strict=True))
    if grid:
        save_image(contact_sheet(images, title=direction), sheet, overwrite)
        files.append(sheet)
    answer(
        as_json,
        {"files": files, "seed": seed},
        wrote(*(files if count <= LISTED else files[count:])),
        f"{count} images written to {output}",
    )
