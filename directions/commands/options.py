"""Arguments and options that several commands share, each declared once, and what turns them into values."""

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from directions.bank.bank import Bank
from flowgrad.errors import UsageError
from flowgrad.resources import find_config, read_config

if TYPE_CHECKING:
    from directions.train.recipe import Recipe


def complete_name(incomplete: str) -> list[str]:
    """Names of directions that begin so, for the shell."""
    return [entry.name for entry in Bank.default().list() if entry.name.startswith(incomplete)]


def known(find: Callable[[str], object]) -> Callable[[str | None], str | None]:
    """The callback of an option that takes a name: `find` raises UsageError for a wrong one, before any work begins."""

    def check(name: str | None) -> str | None:
        if name:
            find(name)
        return name

    return check


def find_weights(kind: str, name: str) -> None:
    """Raise UsageError if no guide or judge has this name or file; guides that are downloaded are not looked up."""
    if name.endswith((".safetensors", ".pt")):
        if not Path(name).expanduser().is_file():
            raise UsageError(f"there is no {kind} at {name}: check the path")
        return
    from flowgrad.guidance.guide_files import is_downloaded, shipped_file

    if not is_downloaded(name):
        shipped_file(name, kind)


known_model = known(find_config)
known_guide, known_judge = (known(partial(find_weights, kind)) for kind in ("guide", "judge"))

Name = Annotated[str, typer.Argument(help="Name in the bank.", autocompletion=complete_name, show_default=False)]
Mixture = Annotated[
    str,
    typer.Argument(
        metavar="NAME[:STRENGTH][+...]",
        help="A direction, or several that add: smiling:0.8+old:0.3. Names in the bank, or .safetensors files.",
        autocompletion=complete_name,
        show_default=False,
    ),
]
Photos = Annotated[list[Path], typer.Argument(help="Photos, or folders of photos.", show_default=False)]
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
Seed = Annotated[int, typer.Option(help="The same seed gives the same result.", min=0)]
Align = Annotated[
    Literal["auto", "always", "never"],
    typer.Option(help="auto aligns faces where it is needed; always fails where there is no face."),
]
Crop = Annotated[bool, typer.Option("--crop", help="Write the aligned face at the model's size.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.")]
Force = Annotated[bool, typer.Option("--force", help="Use directions that were made for other weights of the model.")]
Json = Annotated[bool, typer.Option("--json", help="Answer in JSON.")]
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
    """Add the options of a recipe to a command, which is called with the `recipe` that they make."""
    option = partial(typer.Option, rich_help_panel="Recipe")
    known_recipe = known(partial(read_config, "recipes"))

    def run(
        recipe: Annotated[str, option("--recipe", help="Name or .yaml file.", callback=known_recipe)] = "default",
        iterations: Annotated[int | None, option(help="Updates of the control.")] = None,
        step_size: Annotated[float | None, option(help="Length of an update.")] = None,
        eta: Annotated[float | None, option(help="Weight of the text against preservation, 0 to 1.")] = None,
        intervals: Annotated[int | None, option(help="Intervals of the grid.")] = None,
        augmentations: Annotated[int | None, option(help="Random views of each image in an iteration.")] = None,
        setting: Setting = None,
        **others: Any,
    ) -> None:
        often = {"iterations": iterations, "step_size": step_size, "eta": eta, "intervals": intervals}
        chosen = chosen_recipe(recipe, setting, **often, augmentations=augmentations)
        command(recipe=chosen, **others)

    declared = {**inspect.signature(command).parameters, **inspect.signature(run).parameters}
    del declared["others"]
    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in declared.values()]
    update_wrapper(run, command)
    run.__annotations__ = {name: parameter.annotation for name, parameter in declared.items()}  # what Typer reads
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def chosen_recipe(name: str, settings: Sequence[str] | None, **changes: object) -> "Recipe":
    """The recipe with what the user changed; options that were not given leave it as it is.

    Raises UsageError for an unknown key or a value out of range.
    """
    from directions.train.recipe import load_recipe

    return load_recipe(name, **changed(settings, **changes))


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


def numbers(written: str, option: str, at_least: int = 0) -> tuple[float, ...]:
    """Read "-1,0,1". Raises UsageError naming the option, also for fewer numbers than `at_least`."""
    try:
        values = tuple(float(part) for part in written.split(",") if part.strip())
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)) or len(values) < at_least:
        raise UsageError(f"{option} takes numbers with commas between them, like -1,0,1; got {written!r}")
    return values


def model_name(model: str | None) -> str | None:
    """The name in the configuration of a model that was given by name, file or folder."""
    if model is None:
        return None
    from flowgrad.models import load_config

    return load_config(model).name
