"""Commands that apply directions: `apply-direction` to photos, `sample` to new images."""

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from directions.bank.bank import Bank
from directions.commands.engine import Address, Engine, EngineName, ManifestPlace, Retry, Workers, check_engine
from directions.commands.options import (
    MOST,
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
from directions.commands.outcomes import report
from directions.commands.terminal import Terminal, answer, wrote
from flowgrad.errors import UsageError
from flowgrad.files import check_folder, refuse_existing
from flowgrad.resources import DEFAULT_MODEL

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
    output: Annotated[str, typer.Option("--output", "-o", help="Folder to write to, or an address.")] = "edited",
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
    manifest: ManifestPlace = None,
    retry: Retry = False,
    engine: EngineName = Engine.LOCAL,
    address: Address = None,
    workers: Workers = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Apply a direction to photos, in one pass and without training.

    flowgrad apply-direction smiling photo.jpg --strength 0.8

    flowgrad apply-direction smiling:0.8+old:0.3 holiday/ --grid

    flowgrad apply-direction smiling photo.jpg --strengths=-0.5,0,0.5,1

    flowgrad apply-direction smiling shards/ --manifest done.jsonl

    Photos keep their sizes and details: what the edit changes in a face (all of them, or --face 2) is put back
    into the photo, and the rest stays as it was. A strip shows the photo around its faces. Results are named after the
    photo and what was done: photo-smiling.jpg, photo-smiling@0.8+old@0.3.jpg, photo-smiling-strip.png.
    A photo without a face is left as it is. One that cannot be edited is reported, and the others go on; if the command
    is interrupted, the same one with --skip-existing does the rest. With --manifest, the same command does the rest.
    """
    from directions.bank.mixture import load_parts, parse_mixture
    from directions.photo.beside import process_beside
    from directions.photo.sources import find_sources
    from flowgrad.addresses import below, to_place

    check_engine(engine, manifest, retry, address, grid)
    recorded = manifest is not None or engine is Engine.RAY
    _check_together(strengths, crop, face, align, overwrite, keep_identity, skip_existing, copy_unedited, recorded)
    steps, terminal = numbers(strengths, "--strengths") if strengths else (), Terminal(as_json)
    if steps and strength != 1:
        raise UsageError(f"--strengths takes the place of --strength; give one of the two (got {strength:g} as well)")
    named = asked = parse_mixture(direction, strength)
    if steps and len(asked) == 1:  # a strip's strengths are then the direction's own
        ((name, own),) = asked
        asked, steps = [(name, 1.0)], tuple(own * step for step in steps)
    parts = load_parts(asked, Bank.default(bank), model_name(model))
    files, folder = find_sources(photos), to_place(output)
    if isinstance(folder, Path):
        check_folder(folder)
    with process_beside(align if engine is Engine.LOCAL else "never", workers) as beside, ExitStack() as opened:
        from directions.apply import outputs
        from directions.apply.files import apply_to_files
        from directions.apply.sheets import Sheets
        from directions.apply.steer import common_inversion, mixture
        from directions.apply.wanted import Wanted
        from flowgrad.models import load_model

        inversion = common_inversion([part for part, _ in parts])
        done, title = outputs.done_by(named), outputs.done_by(asked)
        wanted = Wanted(
            steps, crop, face, align, overwrite, keep_identity, inversion, skip_existing, title, copy_unedited, recorded
        )
        done, png = done + ("-crop" if crop else "") + ("-strip" if steps else ""), bool(steps) or lossless
        sheets = Sheets(len(files), steps, title, folder, done) if isinstance(folder, Path) else None
        if grid and not sheets:
            raise UsageError(f"--grid draws on this machine: leave it out, or write to a folder of it, not to {folder}")
        targets = outputs.output_paths(files, folder, done, png, taken=sheets.paths if sheets else ())
        for sheet in sheets.paths if sheets and grid else ():
            outputs.check_output(sheet, outputs.Inputs(files), overwrite or skip_existing)
        name = model or parts[0][0].info.model
        loaded = load_model(name, device, precision)
        control = mixture(loaded, parts, terminal, force, steps or (1.0,))
        drawn = sheets if grid else None
        if not recorded:
            if isinstance(folder, Path):  # in the end: by then a run beside this one has written what it is writing now
                opened.callback(outputs.remove, outputs.unfinished(folder, done))
            edited = apply_to_files(loaded, control, files, targets, wanted, beside, drawn)
        else:
            from directions.batch.manifest import Manifest, options_of

            if isinstance(folder, Path):
                outputs.remove_unfinished(folder, done)
            label = "+".join(f"{part}:{amount:g}" for part, amount in asked)
            options = options_of(control, wanted, loaded.fingerprint, precision, png)
            if engine is Engine.RAY:
                outputs.check_apart(folder, files)
                if isinstance(folder, Path):  # once all is done: a worker may die too
                    opened.callback(outputs.remove_unfinished, folder, done)
                from directions.batch.ray_engine import Job, edit_on_cluster

                place = to_place(manifest) if manifest else below(folder, "manifest")
                starts, steps_of = control.grid.starts, control.grid.steps
                values = control.values.float().cpu().numpy()
                job = Job(name, device, precision, values, starts, steps_of, wanted, label, options, place, retry)
                edited = edit_on_cluster(job, files, targets, address, workers)
            else:
                kept = opened.enter_context(Manifest(Path(str(manifest)), label, options, retry))
                known = kept.known
                edited = kept.record(apply_to_files(loaded, control, files, targets, wanted, beside, known=known))
        edited = terminal.track(edited, "editing", len(files))
        report(edited, len(files), folder, drawn.written if drawn else [], terminal, keep_identity is not None)


def _check_together(
    strengths: str | None,
    crop: bool,
    face: int | None,
    align: str,
    overwrite: bool,
    keep_identity: float | None,
    skip_existing: bool,
    copy_unedited: bool,
    recorded: bool,
) -> None:
    """Raise UsageError for options of which one says what another one forbids."""
    if copy_unedited and (crop or strengths):
        raise UsageError("--copy-unedited copies whole photos; leave out --crop and --strengths, or it")
    if skip_existing and overwrite:
        raise UsageError("--skip-existing leaves files that exist, --overwrite replaces them: give one of the two")
    if skip_existing and recorded:
        raise UsageError("a manifest says what is done, --skip-existing goes by names: give one of the two")
    if keep_identity is not None and strengths:
        raise UsageError("--keep-identity chooses one strength for each photo; leave out --strengths")
    if face is not None and align == "never":
        raise UsageError(f"--face {face} counts faces, and --align never looks for none: give one of the two")


@app.command()
def sample(
    count: Annotated[int, typer.Option(help="How many.", min=1, max=MOST)] = 16,
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

    from directions.apply.samples import sample_to_files
    from directions.apply.steer import mixture
    from directions.figures import contact_sheet
    from directions.photo.writing import save_image
    from flowgrad.models import load_model

    loaded = load_model(model or own or DEFAULT_MODEL, device, precision)
    if sampler:
        from directions.sampler.use import open_sampler

        loaded = open_sampler(sampler, loaded, found, guide, force)
    control = mixture(loaded, parts, terminal, force) if parts else None
    samples = sample_to_files(loaded, count, seed, control, output, overwrite)
    files, images = [], []
    for file, image in terminal.track(samples, "sampling", count):
        files.append(file)
        images += [image] if grid else []  # without a sheet, the images of a long call need not be kept
    if grid:
        save_image(contact_sheet(images, title=direction or sampler), sheet, overwrite)
        files.append(sheet)
    answer(
        as_json,
        {"files": files, "seed": seed},
        wrote(*(files if count <= LISTED else files[count:])),
        f"{count} images written to {output}",
    )
