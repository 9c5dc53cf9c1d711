"""Arguments and options that several commands share, each declared once, and what turns them into values."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from directions.bank.bank import Bank
from directions.file.rules import INTEGER_LIMIT
from flowgrad.errors import UsageError
from flowgrad.guidance.names import is_downloaded, weights_file
from flowgrad.resources import find_config, like, model_files, read_config

if TYPE_CHECKING:
    pass


MOST = 100_000  # images that one call makes: with more it would fill any memory, and their numbers have five digits


def complete_name(incomplete: str) -> list[str]:
    """Names of directions that begin so, for the shell."""
    return [line.name for line in Bank.default().lines() if line.name.startswith(incomplete)]


def complete_sampler(incomplete: str) -> list[str]:
    """Names of samplers that begin so, for the shell."""
    return [line.name for line in Bank.default().lines(kind="sampler") if line.name.startswith(incomplete)]


def known(find: Callable[[str], object]) -> Callable[[str | None], str | None]:
    """The callback of an option that takes a name: `find` raises UsageError for a wrong one, before any work begins."""

    def check(name: str | None) -> str | None:
        if name:
            find(name)
        return name

    return check


def find_weights(kind: str, name: str) -> None:
    """Raise UsageError if no guide or judge has this name or file; guides that are downloaded are not looked up."""
    if not is_downloaded(name):
        weights_file(name, kind)


def find_directions_model(bank: Bank, name: str | None) -> str | None:
    """Return the name of a model (None: any) that directions may be for: one of yours, of ours, or with a direction.

    Raises UsageError for another, with the nearest ones.
    """
    if name is None or name in (there := sorted({*bank.models(), *model_files()})):
        return name
    raise UsageError(f"no model called {name!r}, nor a direction for one; there is {like(name, there)}")


def numbers(written: str, option: str) -> tuple[float, ...]:
    """Read "-1,0,1". Raises UsageError naming the option for what is no number, or for none at all."""
    try:
        values = tuple(float(part) for part in written.split(",") if part.strip())
    except ValueError:
        values = ()
    if not values or not all(map(math.isfinite, values)):
        raise UsageError(f"{option} takes numbers with commas between them, like -1,0,1; got {written!r}")
    return values


def are_numbers(context: typer.Context, option: typer.CallbackParam, written: str | None) -> str | None:
    """The callback of an option that `numbers` reads."""
    if written is not None:
        numbers(written, option.opts[0])
    return written


def is_seed(option: typer.CallbackParam, value: int | None) -> int | None:
    """The callback of an option that takes what random numbers are drawn from."""
    if value is not None and not 0 <= value < INTEGER_LIMIT:
        raise UsageError(f"{option.opts[0]} must lie in 0 to {INTEGER_LIMIT - 1}; got {value}")
    return value


def is_positive(option: typer.CallbackParam, value: float | None) -> float | None:
    """The callback of an option that takes a number above 0."""
    if value is not None and not 0 < value < math.inf:
        raise UsageError(f"{option.opts[0]} must be a number above 0; got {value:g}")
    return value


def known_recipes(names: list[str] | None) -> list[str] | None:
    """The callback of an option that takes recipes."""
    for name in names or ():
        read_config("recipes", name)
    return names


known_model = known(find_config)
known_model_or_folder = known(lambda name: None if Path(name).is_dir() else find_config(name))
known_recipe = known(partial(read_config, "recipes"))
known_guide, known_judge = (known(partial(find_weights, kind)) for kind in ("guide", "judge"))

Name = Annotated[str, typer.Argument(help="Name in the bank.", autocompletion=complete_name, show_default=False)]
SamplerOption = Annotated[
    str, typer.Option("--sampler", help="Draw from a sampler of the bank.", autocompletion=complete_sampler)
]
Mixture = Annotated[
    str,
    typer.Argument(
        metavar="NAME[:STRENGTH][+...]",
        help="A direction, or several that add: smiling:0.8+old:0.3. Names in the bank, or .safetensors files.",
        autocompletion=complete_name,
        show_default=False,
    ),
]
Photos = Annotated[
    list[str],
    typer.Argument(
        help="Photos, folders, patterns, .tar and .parquet files, by path or address; - reads a list of them.",
        show_default=False,
    ),
]
PhotosOption = Annotated[
    list[str],
    typer.Option("--photos", "-p", help="Photos, folders, patterns, .tar or .parquet files, or -; repeatable."),
]
KnownModel = Annotated[str, typer.Argument(help="Name, .yaml file or folder.", callback=known_model)]
ModelName = Annotated[
    str, typer.Option("--model", "-m", help="Name, .yaml file or folder; see `flowgrad models`.", callback=known_model)
]
DirectionsModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="The default is the model that the direction names.", callback=known_model),
]
OwnModel = Annotated[
    str | None, typer.Option("--model", "-m", help="Model. The default is the one that the direction names.")
]
GuideName = Annotated[
    str | None,
    typer.Option("--guide", help="Name or file of a guide. The default is the model's own.", callback=known_guide),
]
BankFolder = Annotated[
    Path | None, typer.Option("--bank", help="Folder of your bank. The default is the variable FLOWGRAD_BANK.")
]
Device = Annotated[str, typer.Option(help="Where to compute: auto, cpu, cuda, or another device of torch.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"], typer.Option(help="auto takes the fastest that is precise enough.")
]
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.", callback=is_seed)]
RecipeSeed = Annotated[
    int | None,
    typer.Option("--seed", help="The same seed gives the same result. The default is the recipe's.", callback=is_seed),
]
Align = Annotated[
    Literal["auto", "always", "never"],
    typer.Option(
        help="auto aligns faces where it is needed; always fails where there is no face; never takes a photo as it is."
    ),
]
Crop = Annotated[bool, typer.Option("--crop", help="Write the aligned face at the model's size.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Force = Annotated[bool, typer.Option("--force", help="Use directions that were made for other weights of the model.")]
AnyWords = Annotated[bool, typer.Option("--force", help="Try a text of which the guide knows no word.")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
Strengths = Annotated[
    str, typer.Option("--strengths", help="Strengths to measure: --strengths -1,1.", callback=are_numbers)
]
Strip = Annotated[
    str | None,
    typer.Option("--strengths", help="A strip of several: --strengths=-0.5,0,0.5,1.", callback=are_numbers),
]
Thresholds = Annotated[str, typer.Option("--thresholds", help="Values of xi.", callback=are_numbers)]
KeepIdentity = Annotated[
    float | None,
    typer.Option(
        help="Per face, the largest strength that keeps dlib's distance below this: 0.5.", callback=is_positive
    ),
]
Strength = Annotated[
    float, typer.Option("--strength", "-s", help="0 changes nothing, 1 is the full effect, -1 its reverse.")
]
Sentence = Annotated[
    str, typer.Option("--text", "-t", help='What the images shall become: "a smiling face".', show_default=False)
]
Source = Annotated[
    str | None, typer.Option(help='What they are: "a serious face". The default is the model\'s subject.')
]
Keep = Annotated[list[str] | None, typer.Option(help='A text whose score shall not change: "a woman - a man".')]

Setting = Annotated[
    list[str] | None, typer.Option("--set", help="Any other key: --set momentum=0.5.", rich_help_panel="Recipe")
]


def with_recipe(command: Callable[..., None]) -> Callable[..., None]:
    """Add a recipe's options to a command with a `model` and texts to `keep`, called with the `recipe` they make."""
    option = partial(typer.Option, rich_help_panel="Recipe")

    def run(
        recipe: Annotated[
            str | None,
            option(
                "--recipe",
                help="Name or .yaml file. Without it, default, or keep where texts are kept.",
                callback=known_recipe,
            ),
        ] = None,
        iterations: Annotated[int | None, option(help="Updates of the control.")] = None,
        step_size: Annotated[float | None, option(help="Length of an update.")] = None,
        eta: Annotated[float | None, option(help="Weight of the text against preservation, 0 to 1.")] = None,
        intervals: Annotated[int | None, option(help="Intervals of the grid.")] = None,
        augmentations: Annotated[int | None, option(help="Random views of each image in an iteration.")] = None,
        setting: Setting = None,
        **others: Any,
    ) -> None:
        from directions.train.recipe import check_intervals, load_recipe, usual_recipe
        from flowgrad.model_config import load_config

        often = {"iterations": iterations, "step_size": step_size, "eta": eta, "intervals": intervals}
        changes = changed(setting, **often, augmentations=augmentations)
        chosen = load_recipe(recipe or usual_recipe(others["keep"] or ()), **changes)
        check_intervals(changes.get("intervals"), load_config(others["model"]).steps)
        command(recipe=chosen, **others)

    return declared_together(run, command)


def declared_together(
    run: Callable[..., None], command: Callable[..., Any], made: Sequence[str] = ()
) -> Callable[..., None]:
    """Give `run`, which hands on what it does not take as `**others`, the options of both, and the command's name.

    made: parameters of the command that `run` makes, and that are no options.
    """
    declared = {**inspect.signature(command).parameters, **inspect.signature(run).parameters}
    for name in ("others", *made):
        del declared[name]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in declared.values()]
    update_wrapper(run, command)
    run.__annotations__ = {name: parameter.annotation for name, parameter in declared.items()}  # what Typer reads
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def changed(settings: Sequence[str] | None, **options: object) -> dict[str, object]:
    """What the user changed of a recipe, by options of their own (None: not given) and by `--set KEY=VALUE`.

    Raises UsageError for a setting that is not written so.
    """
    import yaml

    values = {key: value for key, value in options.items() if value is not None}
    for setting in settings or ():
        key, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set needs KEY=VALUE, for example momentum=0.5; got {setting!r}")
        try:
            values[key.strip().replace("-", "_")] = yaml.safe_load(value)
        except (ValueError, yaml.YAMLError) as error:  # ValueError: a date that does not exist
            raise UsageError(f"--set {setting}: {value!r} is no value; write, for example, momentum=0.5") from error
    return values


def model_name(model: str | None) -> str | None:
    """The name in the configuration of a model that was given by name, file or folder."""
    if model is None:
        return None
    from flowgrad.model_config import load_config

    return load_config(model).name
