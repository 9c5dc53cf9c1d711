"""Commands of `flowgrad sampler`: make samplers, which draw what you describe, and measure them."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from directions.bank.bank import Bank
from directions.bank.entry import Entry
from directions.commands import options
from directions.commands.terminal import Terminal, answer, wrote
from directions.progress import Silent
from flowgrad.errors import UsageError
from flowgrad.files import refuse_existing
from flowgrad.resources import DEFAULT_MODEL
from flowgrad.workers import Workers

if TYPE_CHECKING:
    from directions.file.terms import Term
    from directions.progress import Reporter
    from directions.sampler.train import Trained
    from flowgrad.model_config import ModelConfig

app = typer.Typer(no_args_is_help=True, help="Samplers: draw from the distribution that you describe.")

NewName = Annotated[str, typer.Option("--name", "-n", help="Name in the bank.", show_default=False)]
SamplerName = Annotated[str, typer.Argument(help="A sampler of the bank.", show_default=False)]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="Folder of the figures; default runs/NAME.")]
Method = Annotated[
    Literal["rejection", "network"],
    typer.Option(help="rejection draws exactly; a network, trained for longer, in one pass and nearly so."),
]

Intervals = Annotated[
    int | None, typer.Option(help="Euler steps of the images that are measured; default 12, or all N.", min=1)
]

SHEET, CHART, POOL = "before-after.png", "shares.png", "pool"


def makes_sampler(terms_of: "Callable[..., list[Term]]") -> Callable[..., None]:
    """Add the options of making a sampler to a command that says what is asked for: of a `config`, with a `guide`."""

    def run(
        name: NewName,
        method: Method = "rejection",
        on: Annotated[str, typer.Option("--on", help="A sampler to draw on, for a second stage.")] = "",
        pool: Annotated[int, typer.Option(help="Samples to solve and measure with.", min=8, max=options.MOST)] = 512,
        intervals: Intervals = None,
        gradients: Annotated[
            int | None,
            typer.Option(help="Latents that tell what a network shall move; default 96.", min=2, max=options.MOST),
        ] = None,
        updates: Annotated[int | None, typer.Option(help="Of a network; default 400.", min=1, max=1_000_000)] = None,
        model: options.ModelName = DEFAULT_MODEL,
        guide: options.GuideName = None,
        title: Annotated[str, typer.Option(help="One line for the bank; default: what it asks for.")] = "",
        description: Annotated[str, typer.Option(help="A few sentences for the bank.")] = "",
        tag: Annotated[list[str] | None, typer.Option(help="A word to find it by; repeatable.")] = None,
        output: Output = None,
        bank: options.BankFolder = None,
        seed: options.Seed = 0,
        device: options.Device = "auto",
        precision: options.Precision = "auto",
        overwrite: options.Overwrite = False,
        as_json: options.Json = False,
        **others: Any,
    ) -> None:
        from directions.file.metadata import check_name
        from directions.file.texts import check_described
        from directions.sampler.request import image_intervals
        from flowgrad.model_config import load_config

        if method == "network" and on:
            raise UsageError("a network is trained on a model's own noise: with --on, draw by --method rejection")
        if method != "network" and (gradients or updates):
            raise UsageError("--gradients and --updates are a network's: give --method network too, or leave them out")
        check_name(name, "sampler")
        check_described(title=title or "-", description=description, tags=tuple(tag or ()))
        config = load_config(model)
        intervals = image_intervals(intervals, config.steps)
        found, folder, own = Bank.default(bank), output or Path("runs") / name, str(options.model_name(model))
        parent, leads = found.get(on, own, "sampler").load_sampler() if on else None, Workers.started().leads
        for file in (SHEET, CHART) if leads else ():
            refuse_existing(folder / file, overwrite)
        reporter = Terminal(as_json) if leads else Silent()
        with found.claim(name, own, overwrite) if leads else nullcontext():
            terms = terms_of(config=config, guide=guide, reporter=reporter, **others)
            with Workers.join() as workers:
                from directions.sampler import train
                from directions.sampler.network import NetworkPlan
                from directions.sampler.pool import Parts
                from directions.sampler.use import open_sampler
                from flowgrad.guidance.guide_files import load_guide
                from flowgrad.guidance.judge import load_judge
                from flowgrad.models import load_model

                loaded = load_model(model, workers.device(device), precision)
                config, chosen = loaded.config, load_guide(guide or loaded.config.guide, loaded.device)
                plan = NetworkPlan.of(gradients, updates) if method == "network" else None
                above = parent.hash if parent else ""
                asked = (loaded.fingerprint, chosen.fingerprint, terms, pool, intervals, plan, seed, precision, above)
                workers.check_same("models, options or photos", repr(asked))
                parts = Parts(folder / POOL, (precision, above))
                trained = train.train_sampler(
                    open_sampler(on, loaded, found, guide) if on else loaded,
                    terms,
                    chosen,
                    load_judge(config.judge, loaded.device) if config.judge else None,
                    reporter,
                    classifier=load_judge(config.classifier, loaded.device) if config.classifier else None,
                    pool=pool,
                    intervals=intervals,
                    seed=seed,
                    labels=train.Labels(title, description, tuple(tag or ())),
                    parent=train.Parent(on, parent) if parent else None,
                    network=plan,
                    parts=parts,
                    workers=workers,
                )
            if not leads:
                return
            entry, files = _keep(trained, name, found, folder, overwrite)
            parts.remove()
        _answer(entry, files, name, as_json)

    return options.declared_together(run, terms_of, made=("config", "reporter"))


@app.command("train")
@makes_sampler
def sampler_train(
    config: "ModelConfig",
    guide: str | None,
    reporter: "Reporter",
    text: Annotated[str | None, typer.Option("--text", "-t", help='What all shall show: "a smiling face".')] = None,
    source: options.Source = None,
    classes: Annotated[str, typer.Option("--class", help="Classes that all shall have: happy,female.")] = "",
    identity: Annotated[
        Path | None, typer.Option(help="A photo of the person whom all shall show, or a folder of them.")
    ] = None,
    pose: Annotated[
        str | None,
        typer.Option(help="Degrees that all shall be turned by, or a range: 15, or --pose=-20,-10 (to the left)."),
    ] = None,
    weight: Annotated[float, typer.Option(help="Lambda of each; 1 is Bayes' rule, more is stricter.")] = 1.0,
) -> "list[Term]":
    """Make a sampler whose images show a text, a person or a pose, or are of classes, and put it into the bank.

    flowgrad sampler train --text "a smiling face" --name smilers

    flowgrad sampler train --class happy,female --name happy-women

    flowgrad sampler train --identity photo.jpg --weight 2 --pool 4096 --name her

    Afterwards `flowgrad sample --sampler smilers` draws from it: exactly, by rejection, or by a network in one pass.
    Interrupted, it goes on with the pool that it has drawn. `torchrun --nproc-per-node 2 -m cli sampler train ...`
    shares the work among processes, as it does that of `debias`.
    """
    from directions.sampler.request import class_term, identity_term, pose_term, text_term
    from flowgrad.guidance.names import vocabulary_of

    if source is not None and text is None:
        raise UsageError("--source says what --text is told from: give --text too, or leave it out")
    terms = []
    if text is not None:
        reader = guide or config.guide
        terms.append(text_term(text, source, config, vocabulary_of(reader) if reader else None, weight))
    if classes:
        terms.append(class_term([part.strip() for part in classes.split(",") if part.strip()], config, weight))
    if pose is not None:
        terms.append(pose_term(options.numbers(pose, "--pose"), config, weight))
    if identity is not None:
        terms.append(identity_term(identity, config, reporter, weight))
    if not terms:
        raise UsageError("say what the samples shall be like: by --text, --class, --identity or --pose, or several")
    return terms


@app.command("debias")
@makes_sampler
def sampler_debias(
    config: "ModelConfig",
    guide: str | None,
    reporter: "Reporter",
    attribute: Annotated[list[str], typer.Option("--attribute", "-a", help="Whose shares to set; repeatable.")],
    target: Annotated[
        list[str] | None, typer.Option("--target", help="uniform, or shares such as 0.2,0.8; one for each attribute.")
    ] = None,
) -> "list[Term]":
    """Make a sampler that spreads an attribute evenly, or as you say, and put it into the bank.

    flowgrad sampler debias --attribute age --name all-ages

    flowgrad sampler debias --attribute gender --target 0.8,0.2 --on smilers --name smiling-women
    """
    from directions.sampler.request import moment_term

    shares = [None if written == "uniform" else options.numbers(written, "--target") for written in target or ()]
    return [moment_term(attribute, shares, config)]


def _answer(entry: Entry, files: list[Path], name: str, as_json: bool) -> None:
    from directions.commands import tables

    info = entry.sampler.as_dict() if entry.sampler else None
    answer(
        as_json,
        {"sampler": entry.path, "files": files, "info": info},
        tables.sampler_card(entry),
        wrote(entry.path, *files),
        f"next: flowgrad sample --sampler {name} --count 16 --grid",
    )


def _keep(trained: "Trained", name: str, bank: Bank, folder: Path, overwrite: bool) -> tuple[Entry, list[Path]]:
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
    count: Annotated[int, typer.Option(help="Images to draw from each.", min=2, max=options.MOST)] = 100,
    intervals: Intervals = None,
    optimize: Annotated[
        int, typer.Option(help="Also optimise each of the model's samples, with so many updates; 0: do not.", min=0)
    ] = 0,
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

    With `--optimize 8` the sampler is compared with what it saves: a control found for each sample on its own.
    """
    from directions.sampler.request import image_intervals

    found = Bank.default(bank)
    entry = found.get(name, options.model_name(model), "sampler")
    if entry.sampler:
        image_intervals(intervals, entry.sampler.steps)  # refused before anything is loaded
    if optimize and entry.sampler and (parent := entry.sampler.parent):
        raise UsageError(f"--optimize starts from a model's own samples, and {name} draws on {parent}: leave it out")
    sheet, figures_file = output / SHEET, output / "evaluation.json"
    for file in (sheet, figures_file):
        refuse_existing(file, overwrite)

    import json
    from dataclasses import asdict

    from directions.commands import tables
    from directions.figures import before_after
    from directions.photo.reading import to_images
    from directions.photo.writing import save_image
    from directions.sampler import evaluation, optimized
    from directions.sampler.pool import draw
    from directions.sampler.train import SHOWN
    from directions.sampler.use import energy_of, open_sampler
    from flowgrad.files import atomic_path
    from flowgrad.guidance.guide_files import load_guide
    from flowgrad.guidance.judge import load_judge
    from flowgrad.models import load_model
    from flowgrad.models.metering import metered
    from flowgrad.ode import Grid
    from flowgrad.optimize import Settings

    terminal, loaded = Terminal(as_json), load_model(model or entry.model, device, precision)
    info, chosen = entry.load_sampler().info, judge or loaded.config.judge
    network = load_judge(chosen, loaded.device) if chosen else None
    grid = Grid.uniform(loaded.config.steps, image_intervals(intervals, loaded.config.steps))
    counting, account = metered(loaded)
    before = draw(loaded, grid, count, seed, terminal)
    sampled = draw(open_sampler(name, counting, found, guide, force), grid, count, seed, terminal)
    drawn = {"sampler": optimized.Drawn.of(sampled, account)}
    if optimize:
        reader = load_guide(guide or loaded.config.guide, loaded.device) if info.guide else None
        energy, settings = energy_of(info, reader, loaded), Settings(iterations=optimize)
        drawn["optimised"] = optimized.optimize_each(loaded, energy, grid, count, seed, settings, terminal)
    faces = loaded.config.aligned_faces
    measured = {key: evaluation.compare(info, network, before, value.images, faces) for key, value in drawn.items()}
    evaluations = {"model": float(len(grid)), **{key: value.evaluations for key, value in drawn.items()}}
    shown = {"model": before, **{key: value.images for key, value in drawn.items()}}
    pictures = {key: to_images(images[:SHOWN]) for key, images in shown.items()}
    save_image(before_after(pictures, info.title), sheet, overwrite)
    data = {"sampler": name, "count": count, "seed": seed, **asdict(measured["sampler"]), "evaluations": evaluations}
    data |= {"optimised": asdict(measured["optimised"])} if optimize else {}
    data["sheet"] = str(sheet)
    with atomic_path(figures_file) as temporary:
        temporary.write_text(json.dumps(data, indent=2, ensure_ascii=False), encoding="utf-8")
    table = tables.plain_table(*evaluation.evaluation_table(measured, evaluations), numbers=True)
    answer(as_json, data, table, wrote(sheet, figures_file))
