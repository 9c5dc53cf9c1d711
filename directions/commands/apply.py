"""Commands that apply directions: `apply-direction` to photos, `sample` to new images."""

from collections import Counter
from collections.abc import Iterable
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
    GuideName,
    Json,
    KeepIdentity,
    Mixture,
    Overwrite,
    Photos,
    Precision,
    SamplerOption,
    Seed,
    Strength,
    Strip,
    model_name,
    numbers,
)
from directions.commands.terminal import Listing, Terminal, answer, wrote
from flowgrad.errors import UsageError
from flowgrad.files import printable, refuse_existing
from flowgrad.resources import DEFAULT_MODEL

if TYPE_CHECKING:
    from directions.apply.files import Outcome
    from directions.apply.sheets import Sheets

app = typer.Typer()
LISTED = 10  # samples that are named one by one when a command ends


@app.command("apply-direction")
def apply_direction(
    direction: Mixture,
    photos: Photos,
    strength: Strength = 1.0,
    strengths: Strip = None,
    grid: Annotated[bool, typer.Option("--grid", help="Also draw contact sheets of all photos.")] = False,
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
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave photos whose output exists, and go on with the others.")
    ] = False,
    copy_unedited: Annotated[
        bool, typer.Option("--copy-unedited", help="Write a copy of each photo in which no face is found.")
    ] = False,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Apply a direction to photos, in one pass and without training.

    flowgrad apply-direction smiling photo.jpg --strength 0.8

    flowgrad apply-direction smiling:0.8+old:0.3 holiday/ --grid

    flowgrad apply-direction smiling photo.jpg --strengths=-0.5,0,0.5,1

    Photos keep their sizes and details: what the edit changes in a face (all of them, or --face 2) is put back
    into the photo, and the rest stays as it was. A strip shows the photo around its faces. Results are named after the
    photo and what was done: photo-smiling.jpg, photo-smiling@0.8+old@0.3.jpg, photo-smiling-strip.png.
    A photo without a face is left as it is. One that cannot be edited is reported, and the others go on; if the command
    is interrupted, the same one with --skip-existing does the rest.
    """
    from directions.bank.mixture import load_parts, parse_mixture
    from directions.photo.beside import process_beside
    from directions.photo.reading import find_photos

    steps, terminal = numbers(strengths, "--strengths") if strengths else (), Terminal(as_json)
    if steps and strength != 1:
        raise UsageError(f"--strengths takes the place of --strength; give one of the two (got {strength:g} as well)")
    named = asked = parse_mixture(direction, strength)
    if steps and len(asked) == 1:  # a strip's strengths are then the direction's own
        ((name, own),) = asked
        asked, steps = [(name, 1.0)], tuple(own * step for step in steps)
    parts = load_parts(asked, Bank.default(bank), model_name(model))
    files = find_photos(photos)
    with process_beside(align) as beside:
        from directions.apply import files as editing
        from directions.apply import outputs
        from directions.apply.sheets import Sheets
        from directions.apply.steer import common_inversion
        from flowgrad.models import load_model

        inversion = common_inversion([part for part, _ in parts])
        done, title = outputs.done_by(named), outputs.done_by(asked)
        wanted = editing.Wanted(
            steps, crop, face, align, overwrite, keep_identity, inversion, skip_existing, title, copy_unedited
        )
        kind = ("-crop" if crop else "") + ("-strip" if steps else "")
        sheets = Sheets(len(files), steps, title, output, done + kind)
        targets = outputs.output_paths(files, output, done + kind, bool(steps) or lossless, taken=sheets.paths)
        outputs.check_folder(output)
        for sheet in sheets.paths if grid else ():
            outputs.check_output(sheet, outputs.Inputs(files), overwrite or skip_existing)
        loaded = load_model(model or parts[0][0].info.model, device, precision)
        control = editing.mixture(loaded, parts, terminal, force, steps or (1.0,))
        edited = editing.apply_to_files(loaded, control, files, targets, wanted, beside, sheets if grid else None)
        _report(terminal.track(edited, "editing", len(files)), len(files), output, sheets, terminal, as_json)


def _report(
    outcomes: "Iterable[Outcome]", count: int, folder: Path, sheets: "Sheets", terminal: Terminal, as_json: bool
) -> None:
    """Say at once what became of each photo; exit with 1 if any failed, or if none has a face: nothing was done.

    The error of a single photo is raised.
    """
    counted, unedited = Counter[str](), []
    with Listing(as_json, "files") as listing:
        for outcome in outcomes:
            if outcome.error and count == 1:
                raise outcome.error
            if outcome.warning:
                terminal.warn(f"{printable(outcome.photo.name)}: {outcome.warning}")
            if outcome.error:
                failed(printable(str(outcome.error)))
            if outcome.unedited:
                unedited.append(outcome.photo)
            counted[_fate(outcome)] += 1
            listing.add(_as_json(outcome), _left(outcome), _faces(outcome), _kept(outcome), _wrote(outcome))
        listing.end(
            {"unedited": unedited, "contact_sheets": sheets.written},
            wrote(*sheets.written),
            _count(counted, count, folder) if count > 1 else "",
        )
    if counted["left"] == count:
        from directions.photo.faces import NO_FACE_REMEDY

        raise failed(f"no photo was edited. {NO_FACE_REMEDY}")
    if counted["failed"]:
        raise typer.Exit(1)


def _fate(outcome: "Outcome") -> str:
    if outcome.error:
        return "failed"
    return "skipped" if outcome.skipped else "written" if outcome.output else "left"


def _as_json(outcome: "Outcome") -> dict[str, object]:
    error = outcome.error and str(outcome.error)
    result: dict[str, object] = {"photo": outcome.photo, "output": outcome.output, "error": error}
    result |= {"warning": outcome.warning, "skipped": outcome.skipped, "unedited": outcome.unedited}
    if outcome.faces:
        result["faces"] = dict(zip(("edited", "too_small"), outcome.faces, strict=True))
    if outcome.kept:
        result["identity"] = [{"share": share, "distance": distance} for share, distance in outcome.kept]
    return result


def _left(outcome: "Outcome") -> str:
    """That a photo was left as it is, and why."""
    return f"{printable(outcome.photo.name)}: {outcome.unedited}, so it stays as it is" if outcome.unedited else ""


def _faces(outcome: "Outcome") -> str:
    """How many faces were edited, unless it is the only one: "3 faces edited, 1 too small"."""
    edited, too_small = outcome.faces or (0, 0)
    if not edited or edited + too_small == 1:
        return ""
    small = f", {too_small} too small" if too_small else ""
    return f"{printable(outcome.photo.name)}: {edited} {'face' if edited == 1 else 'faces'} edited{small}"


def _kept(outcome: "Outcome") -> str:
    """What the identity budget left of the strength asked for, face by face."""
    faces = (f"{share:.0%} of the strength, identity distance {distance:.2f}" for share, distance in outcome.kept)
    return f"{printable(outcome.photo.name)}: {'; '.join(faces)}" if outcome.kept else ""


def _wrote(outcome: "Outcome") -> str:
    if outcome.error or not outcome.output:
        return ""
    return f"skipped {printable(str(outcome.output))}: it exists already" if outcome.skipped else wrote(outcome.output)


def _count(counted: "Counter[str]", count: int, folder: Path) -> str:
    words = {"skipped": "skipped", "left": "left as they are", "failed": "failed"}
    others = "".join(f", {counted[what]} {told}" for what, told in words.items() if counted[what])
    return f"{counted['written']} of {count} photos written to {folder}{others}"


@app.command()
def sample(
    count: Annotated[int, typer.Option(help="How many.", min=1)] = 16,
    direction: Annotated[str, typer.Option("--direction", "-d", help="NAME[:STRENGTH], + adds.")] = "",
    sampler: SamplerOption = "",
    grid: Annotated[bool, typer.Option("--grid", help="Also draw a contact sheet.")] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("samples"),
    model: DirectionsModel = None,
    guide: GuideName = None,
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

    flowgrad sample --sampler smilers --count 16

    Image i of a seed is the same whatever --count is, with a direction and without one.
    """
    from directions.bank.mixture import load_parts, parse_mixture

    if guide and not sampler:
        raise UsageError("--guide is asked by a sampler alone: give --sampler too, or leave it out")
    terminal, sheet = Terminal(as_json), output / "contact-sheet.png"
    found = Bank.default(bank)
    parts = load_parts(parse_mixture(direction) if direction else (), found, model_name(model))
    own = parts[0][0].info.model if parts else None
    if sampler:
        own = found.get(sampler, model_name(model) or own, "sampler").model
    if grid:
        refuse_existing(sheet, overwrite)

    from directions.apply import files as editing
    from directions.figures import contact_sheet
    from directions.photo.writing import save_image
    from flowgrad.models import load_model

    loaded = load_model(model or own or DEFAULT_MODEL, device, precision)
    if sampler:
        from directions.sampler.use import open_sampler

        loaded = open_sampler(sampler, loaded, found, guide, force)
    control = editing.mixture(loaded, parts, terminal, force) if parts else None
    samples = editing.sample_to_files(loaded, count, seed, control, output, overwrite)
    files, images = map(list, zip(*terminal.track(samples, "sampling", count), strict=True))
    if grid:
        save_image(contact_sheet(images, title=direction or sampler), sheet, overwrite)
        files.append(sheet)
    answer(
        as_json,
        {"files": files, "seed": seed},
        wrote(*(files if count <= LISTED else files[count:])),
        f"{count} images written to {output}",
    )
