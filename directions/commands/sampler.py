"""Commands of `flowgrad sampler`: make samplers, which draw what you describe, and measure them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from directions.bank.bank import Bank
from directions.commands import options
from directions.commands.terminal import Terminal, answer, wrote
from flowgrad.errors import UsageError
from flowgrad.files import refuse_existing

if TYPE_CHECKING:
    from directions.file.terms import Term
    from directions.sampler.train import Trained

app = typer.Typer(no_args_is_help=True, help="Samplers: draw from the distribution that you describe.")

NewName = Annotated[str, typer.Option("--name", "-n", help="Name in the bank.", show_default=False)]
SamplerName = Annotated[str, typer.Argument(help="A sampler of the bank.", show_default=False)]
Pool = Annotated[int, typer.Option(help="Samples to solve and measure with.", min=8)]
Intervals = Annotated[int, typer.Option(help="Euler steps of the images that the energy sees.", min=1)]
On = Annotated[str, typer.Option("--on", help="A sampler to draw on, for a second stage.")]
Method = Annotated[
    Literal["rejection", "network"],
    typer.Option(help="rejection draws exactly; a network, trained for longer, in one pass and nearly so."),
]
Dimensions = Annotated[int, typer.Option(help="Of the part of a latent that a network moves.", min=2)]
Updates = Annotated[int, typer.Option(help="Of a network.", min=1)]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder for the figures; default runs/NAME.")]
Title = Annotated[str, typer.Option(help="One line for the bank; default: what it asks for.")]
Description = Annotated[str, typer.Option(help="A few sentences for the bank.")]
Tag = Annotated[list[str] | None, typer.Option(help="A word to find it by; repeatable.")]


class Network(NamedTuple):
    """What the commands say of a network; half as many gradients again as dimensions span its subspace."""

    dimensions: int
    updates: int

    @property
    def gradients(self) -> int:
        return self.dimensions + self.dimensions // 2


SHEET, CHART, POOL = "before-after.png", "shares.png", "pool"


@app.command("train")
def sampler_train(
    name: NewName,
    text: Annotated[str | None, typer.Option("--text", "-t", help='What all shall show: "a smiling face".')] = None,
    source: options.Source = None,
    classes: Annotated[str, typer.Option("--class", help="Classes that all shall have: happy,female.")] = "",
    weight: Annotated[float, typer.Option(help="Lambda; 1 is Bayes' rule, more is stricter.")] = 1.0,
    on: On = "",
    model: options.ModelName = "faces64",
    guide: options.GuideName = None,
    pool: Pool = 512,
    intervals: Intervals = 12,
    method: Method = "rejection",
    dimensions: Dimensions = 64,
    updates: Updates = 80,
    title: Title = "",
    description: Description = "",
    tag: Tag = None,
    output: Output = None,
    bank: options.BankFolder = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Make a sampler whose images show a text, or are of classes, and put it into the bank.

    flowgrad sampler train --text "a smiling face" --name smilers

    flowgrad sampler train --class happy,female --name happy-women

    Afterwards `flowgrad sample --sampler smilers` draws from it: exactly, by rejection, or by a network in one pass.
    """
    from directions.sampler.request import class_term, text_term
    from flowgrad.guidance.names import vocabulary_of
    from flowgrad.model_config import load_config

    config, terms = load_config(model), []
    if text is not None:
        reader = guide or config.guide
        terms.append(text_term(text, source, config, vocabulary_of(reader) if reader else None, weight))
    if classes:
        terms.append(class_term([part.strip() for part in classes.split(",") if part.strip()], config, weight))
    if not terms:
        raise UsageError("say what the samples shall be like: with --text, with --class, or with both")
    network = Network(dimensions, updates) if method == "network" else None
    _make(terms, name, on, model, guide, pool, intervals, (title, description, tuple(tag or ())), output, bank, seed,
          device, precision, overwrite, as_json, network)  # fmt: skip


@app.command("debias")
def sampler_debias(
    name: NewName,
    attribute: Annotated[list[str], typer.Option("--attribute", "-a", help="Whose shares to set; repeatable.")],
    target: Annotated[
        list[str] | None, typer.Option("--target", help="uniform, or shares such as 0.2,0.8; one for each attribute.")
    ] = None,
    on: On = "",
    model: options.ModelName = "faces64",
    guide: options.GuideName = None,
    pool: Pool = 1024,
    intervals: Intervals = 12,
    method: Method = "rejection",
    dimensions: Dimensions = 64,
    updates: Updates = 80,
    title: Title = "",
    description: Description = "",
    tag: Tag = None,
    output: Output = None,
    bank: options.BankFolder = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:
    """Make a sampler that spreads an attribute evenly, or as you say, and put it into the bank.

    flowgrad sampler debias --attribute age --name all-ages

    flowgrad sampler debias --attribute gender --target 0.8,0.2 --on smilers --name smiling-women
    """
    from directions.sampler.request import moment_term
    from flowgrad.model_config import load_config

    shares = [None if written == "uniform" else options.numbers(written, "--target") for written in target or ()]
    terms = [moment_term(attribute, shares, load_config(model))]
    network = Network(dimensions, updates) if method == "network" else None
    _make(terms, name, on, model, guide, pool, intervals, (title, description, tuple(tag or ())), output, bank, seed,
          device, precision, overwrite, as_json, network)  # fmt: skip


def _make(
    terms: "list[Term]",
    name: str,
    on: str,
    model: str,
    guide: str | None,
    pool: int,
    intervals: int,
    labels: tuple[str, str, tuple[str, ...]],
    output: Path | None,
    bank: Path | None,
    seed: int,
    device: str,
    precision: str,
    overwrite: bool,
    as_json: bool,
    network: "Network | None",
) -> None:
    """What both commands do once they know the terms."""
    if network and on:
        raise UsageError("a network is trained on a model's own noise: with --on, draw by --method rejection")
    found, folder = Bank.default(bank), output or Path("runs") / name
    own = str(options.model_name(model))
    parent = found.get(on, own, "sampler").load_sampler() if on else None
    for file in (SHEET, CHART):
        refuse_existing(folder / file, overwrite)
    with found.claim(name, own, overwrite):
        from directions.commands import tables
        from directions.sampler import train
        from directions.sampler.network import NetworkPlan
        from directions.sampler.pool import Parts
        from directions.sampler.use import open_sampler
        from flowgrad.guidance.guide_files import load_guide
        from flowgrad.guidance.judge import load_judge
        from flowgrad.models import load_model

        terminal, loaded = Terminal(as_json), load_model(model, device, precision)
        reader = load_guide(guide or loaded.config.guide, loaded.device)
        judge = load_judge(loaded.config.judge, loaded.device) if loaded.config.judge else None
        source = open_sampler(on, loaded, found, guide) if on else loaded
        parts = Parts(folder / POOL, (precision, parent.hash if parent else ""))
        trained = train.train_sampler(
            source,
            terms,
            reader,
            judge,
            terminal,
            pool=pool,
            intervals=intervals,
            seed=seed,
            labels=train.Labels(*labels),
            parent=train.Parent(on, parent) if parent else None,
            parts=parts,
            network=NetworkPlan(network.dimensions, network.gradients, network.updates) if network else None,
        )
        entry, files = _keep(trained, name, found, folder, overwrite)
        parts.remove()
    answer(
        as_json,
        {"sampler": entry.path, "files": files, "info": trained.sampler.info.as_dict()},
        tables.sampler_card(entry),
        wrote(entry.path, *files),
        f"next: flowgrad sample --sampler {name} --count 16 --grid",
    )


def _keep(trained: "Trained", name: str, bank: Bank, folder: Path, overwrite: bool) -> tuple[Any, list[Path]]:
    """Put a sampler into the bank, with a preview and a card, and draw its figures; the entry and the figures."""
    import dataclasses

    from directions.bank.sampler_card import to_sampler_card
    from directions.figures import preview, thumbnail
    from directions.file.sampler import SamplerFile
    from directions.photo.reading import to_images
    from directions.photo.writing import save_image
    from directions.sampler import figures

    before, after = map(to_images, (trained.before, trained.after))
    info = dataclasses.replace(trained.sampler.info, thumbnail=thumbnail(before, after))
    files = [save_image(figures.sheet(before, after, info.title), folder / SHEET, overwrite)]
    if info.measured:
        files.append(figures.shares_chart(info.measured, folder / CHART, info.title, overwrite))
    entry = bank.add(
        SamplerFile(info, trained.sampler.tensors),
        name,
        preview=preview(before[:8], after[:8]),
        card=to_sampler_card(name, info),
        overwrite=overwrite,
        claimed=True,
    )
    return entry, files


@app.command("evaluate")
def sampler_evaluate(
    name: SamplerName,
    count: Annotated[int, typer.Option(help="Images to draw from each.", min=2)] = 100,
    intervals: Annotated[int, typer.Option(help="Euler steps of each image.", min=1)] = 12,
    model: options.DirectionsModel = None,
    guide: options.GuideName = None,
    judge: Annotated[str, typer.Option(help="Name or file of the judge.", callback=options.known_judge)] = "",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write to.")] = Path("sampler-evaluation"),
    bank: options.BankFolder = None,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    overwrite: options.Overwrite = False,
    force: options.Force = False,
    as_json: options.Json = False,
) -> None:
    """Draw from a sampler and from its model, and measure both: by a judge, and how varied the faces are.

    flowgrad sampler evaluate all-ages --count 200
    """
    found = Bank.default(bank)
    entry = found.get(name, options.model_name(model), "sampler")
    sheet, figures_file = output / SHEET, output / "evaluation.json"
    for file in (sheet, figures_file):
        refuse_existing(file, overwrite)

    import json
    from dataclasses import asdict

    from directions.commands import tables
    from directions.photo.reading import to_images
    from directions.photo.writing import save_image
    from directions.sampler import evaluation, figures
    from directions.sampler.pool import draw
    from directions.sampler.train import SHOWN
    from directions.sampler.use import open_sampler
    from flowgrad.files import atomic_path
    from flowgrad.guidance.judge import load_judge
    from flowgrad.models import load_model
    from flowgrad.ode import Grid

    terminal, loaded = Terminal(as_json), load_model(model or entry.model, device, precision)
    info, chosen = entry.load_sampler().info, judge or loaded.config.judge
    network = load_judge(chosen, loaded.device) if chosen else None
    grid = Grid.uniform(loaded.config.steps, min(intervals, loaded.config.steps))
    sources = (loaded, open_sampler(name, loaded, found, guide, force))
    before, after = (draw(source, grid, count, seed, terminal) for source in sources)
    measured = evaluation.compare(info, network, before, after)
    shown = [to_images(images[:SHOWN]) for images in (before, after)]
    save_image(figures.sheet(shown[0], shown[1], info.title), sheet, overwrite)
    data = {"sampler": name, "count": count, "seed": seed, **asdict(measured), "sheet": str(sheet)}
    with atomic_path(figures_file) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")
    table = tables.plain_table(*evaluation.evaluation_table(measured), numbers=True)
    answer(as_json, data, table, wrote(sheet, figures_file))
