"""Commands of `flowgrad bank`: browse, keep and share directions."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from directions.bank.bank import SUFFIX, Bank, Entry
from directions.bank.line import Line, line_of
from directions.commands.errors import failed
from directions.commands.listing import bank_lines
from directions.commands.options import (
    MOST,
    BankFolder,
    Device,
    Force,
    GuideName,
    Json,
    ModelName,
    Name,
    Overwrite,
    OwnModel,
    Precision,
    complete_name,
    find_directions_model,
    model_name,
)
from directions.commands.terminal import Terminal, answer, wrote
from directions.file.direction import read_direction
from directions.file.factors import missed
from flowgrad.errors import FlowgradError
from flowgrad.files import refuse_existing
from flowgrad.resources import DEFAULT_MODEL

app = typer.Typer(no_args_is_help=True, help="Browse and keep directions: yours, and those that ship.")

Repository = Annotated[str, typer.Argument(metavar="OWNER/NAME", help="On the Hugging Face hub.", show_default=False)]


def _bank(folder: Path | None, model: str | None = None) -> Bank:
    """The bank of a command. Raises UsageError for a model that does not exist."""
    found = Bank.default(folder)
    find_directions_model(found, model)
    return found


def _browse(lines: Sequence[Line], bank: Bank) -> None:
    shown = bank_lines(lines) if lines else "no direction found"
    samplers = sum(line.kind == "sampler" for line in lines)
    also = f" and {samplers} samplers" if samplers else ""
    answer(False, None, shown, f"{len(lines) - samplers} directions{also}; yours are in {bank.folder}")


def plain(entry: Entry) -> dict[str, object]:
    """A direction or a sampler of the bank, for programs."""
    info = entry.info.as_dict() if entry.info else None
    if entry.sampler:
        info = entry.sampler.as_dict()
    facts = {"name": entry.name, "kind": entry.kind, "model": entry.model, "path": entry.path, "shipped": entry.shipped}
    return {**facts, "preview": entry.preview, "error": entry.error, "info": info}


@app.command("list")
def bank_list(model: OwnModel = None, bank: BankFolder = None, as_json: Json = False) -> None:
    """List the directions and samplers of your bank and of the one that ships."""
    found = _bank(bank, model)
    if as_json:
        answer(as_json, [plain(entry) for entry in found.list(model, kind=None)])
    else:
        _browse(found.lines(model, kind=None), found)


@app.command("search")
def bank_search(
    words: Annotated[list[str], typer.Argument(help="All must occur: in name, texts, tags or description.")],
    bank: BankFolder = None,
    as_json: Json = False,
) -> None:
    """Find directions by words, best match first."""
    found = Bank.default(bank)
    entries = found.search(" ".join(words))
    if as_json:
        answer(as_json, [plain(entry) for entry in entries])
    else:
        _browse([line_of(entry) for entry in entries], found)


@app.command("show")
def bank_show(name: Name, model: OwnModel = None, bank: BankFolder = None, as_json: Json = False) -> None:
    """Show a direction: texts, what each strength does, side effects, identity, training; or a sampler."""
    from directions.commands import tables

    entry = _bank(bank, model).get(name, model, kind=None)
    answer(as_json, plain(entry), tables.sampler_card(entry) if entry.sampler else tables.direction_card(entry))


@app.command("path")
def bank_path(
    name: Annotated[str, typer.Argument(help="A direction; without one, the bank.", autocompletion=complete_name)] = "",
    model: OwnModel = None,
    bank: BankFolder = None,
) -> None:
    """Print where a direction, or your bank, is."""
    found = _bank(bank, model)
    typer.echo(str(found.get(name, model, kind=None).path if name else found.folder))


@app.command("remove")
def bank_remove(name: Name, model: OwnModel = None, bank: BankFolder = None, as_json: Json = False) -> None:
    """Remove a direction or a sampler of yours; `bank restore` brings it back."""
    entry = _bank(bank, model).remove(name, model)
    answer(as_json, plain(entry), f"removed {entry.path}; `flowgrad bank restore {entry.name}` brings it back")


@app.command("restore")
def bank_restore(
    name: Annotated[str, typer.Argument(help="Name of a removed direction.", show_default=False)],
    model: OwnModel = None,
    bank: BankFolder = None,
    as_json: Json = False,
) -> None:
    """Bring back what was last removed or replaced under a name."""
    entry = _bank(bank, model).restore(name, model)
    answer(as_json, plain(entry), f"restored {entry.path}")


@app.command("rename")
def bank_rename(
    name: Name,
    new_name: Annotated[str, typer.Argument(show_default=False)],
    model: OwnModel = None,
    bank: BankFolder = None,
    as_json: Json = False,
) -> None:
    """Give a direction or a sampler of yours another name."""
    entry = _bank(bank, model).rename(name, new_name, model)
    answer(as_json, plain(entry), f"renamed {name} to {entry.path}")


@app.command("import")
def bank_import(
    file: Annotated[Path, typer.Argument(help=f"A direction file ({SUFFIX}).", show_default=False)],
    name: Annotated[str | None, typer.Option("--name", "-n", help="Default: the file's name.")] = None,
    bank: BankFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Check a direction's or a sampler's file from elsewhere and put it into your bank."""
    entry = Bank.default(bank).import_file(file, name, overwrite)
    answer(as_json, plain(entry), f"wrote {entry.path}")


@app.command("export")
def bank_export(
    name: Name,
    destination: Annotated[Path, typer.Argument(help=f"A folder, or a {SUFFIX} file.", show_default=False)],
    model: OwnModel = None,
    rank: Annotated[
        int | None, typer.Option(min=1, help="Make it small: so many patterns in 8 bits; 4 keep the effect.")
    ] = None,
    bank: BankFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Copy a direction or a sampler to a file or a folder, to pass it on."""
    found = _bank(bank, model)
    whole = found.get(name, model).load() if rank else None
    path = found.export(name, destination, model, overwrite, rank)
    if whole is None:
        answer(as_json, {"file": path}, f"wrote {path}")
        return
    share = missed(whole.u, read_direction(path).u, whole.lengths)
    told = f"{100 * share:.1f} % of the control is missed (patterns in 8 bits: {rank})"
    answer(as_json, {"file": path, "missed": share}, f"wrote {path}", told)


@app.command("gallery")
def bank_gallery(
    output: Annotated[Path, typer.Option("--output", "-o", help="The .html file.")] = Path("gallery.html"),
    title: Annotated[str, typer.Option(help="Its heading.")] = "Directions",
    model: OwnModel = None,
    bank: BankFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Write the bank as one HTML file to browse: previews inside, no network needed."""
    from directions.bank.gallery import write_gallery

    path = write_gallery(_bank(bank, model).list(model), output, title, overwrite)
    answer(as_json, {"file": path}, f"wrote {path}")


@app.command("matrix")
def bank_matrix(
    names: Annotated[list[str] | None, typer.Argument(help="Directions; default: all of the model.")] = None,
    model: ModelName = DEFAULT_MODEL,
    count: Annotated[int, typer.Option(help="Samples to measure on.", min=1, max=MOST)] = 16,
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
    from directions.measure.texts import texts_of

    found, terminal = Bank.default(bank), Terminal(as_json)
    own = model_name(model)
    entries = [found.get(name, own) for name in names] if names else list(found.list(own))
    texts_of(entries)  # what cannot be measured is refused before anything is loaded
    table, picture = output / "matrix.csv", output / "matrix.png"
    for path in (table, picture):
        refuse_existing(path, overwrite)

    import numpy as np

    from directions.apply.inversion import join, sample_images
    from directions.commands import tables
    from directions.measure import interference
    from directions.train.calibration import HELD_OUT_SEED
    from flowgrad.guidance.guide_files import load_guide
    from flowgrad.models import load_model

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
    answer(as_json, data, tables.plain_table(("applied", *measured.names), shown), wrote(table, picture))


@app.command("push")
def bank_push(
    repository: Repository,
    names: Annotated[list[str] | None, typer.Argument(help="Directions; default: all of yours.")] = None,
    private: Annotated[bool, typer.Option("--private", help="If the repository is made now.")] = False,
    model: OwnModel = None,
    bank: BankFolder = None,
    as_json: Json = False,
) -> None:
    """Share directions and samplers in a Hugging Face repository, with a README. Log in first: `hf auth login`."""
    from directions.bank.hub import push

    found = _bank(bank, model)
    own = [entry for entry in found.list(model, kind=None) if not entry.shipped]
    entries = [found.get(name, model, kind=None) for name in names] if names else own
    url = push(entries, repository, private=private)
    answer(as_json, {"url": url, "names": [e.name for e in entries]}, f"{len(entries)} directions pushed to {url}")


@app.command("pull")
def bank_pull(
    repository: Repository,
    names: Annotated[list[str] | None, typer.Argument(help="Directions; default: all there are.")] = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit.")] = None,
    bank: BankFolder = None,
    overwrite: Overwrite = False,
    as_json: Json = False,
) -> None:
    """Fetch directions and samplers from a Hugging Face repository, check them, and put them into your bank."""
    from directions.bank.hub import pull

    results = pull(repository, Bank.default(bank), names or (), overwrite=overwrite, revision=revision)
    found = list(Terminal(as_json).track(results, "fetching"))
    errors = [result for result in found if isinstance(result, FlowgradError)]
    entries = [result for result in found if isinstance(result, Entry)]
    answer(
        as_json,
        {"directions": [plain(entry) for entry in entries], "errors": [str(error) for error in errors]},
        wrote(*(entry.path for entry in entries)),
        f"{len(entries)} of {len(found)} directions put into {Bank.default(bank).folder}",
    )
    for error in errors:
        failed(str(error))
    if errors:
        raise typer.Exit(1)
