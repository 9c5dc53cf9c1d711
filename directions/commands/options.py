"""Arguments and options that several commands share, each declared once, and what turns them into values."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from directions.bank.bank import Bank
from flowgrad.errors import UsageError

if TYPE_CHECKING:
    from directions.train.recipe import Recipe


def complete_name(incomplete: str) -> list[str]:
    """Names of directions that begin so, for the shell."""
    return [entry.name for entry in Bank.default().list() if entry.name.startswith(incomplete)]


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
ModelName = Annotated[str, typer.Option("--model", "-m", help="Name, .yaml file or folder; see `flowgrad models`.")]
OwnModel = Annotated[
    str | None, typer.Option("--model", "-m", help="Model. The default is the one that the direction names.")
]
GuideName = Annotated[
    str | None, typer.Option("--guide", help="Name or .safetensors file of a guide. The default is the model's own.")
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
RecipeName = Annotated[str, typer.Option("--recipe", help="Name or .yaml file.")]
Iterations = Annotated[int | None, typer.Option(help="Updates of the control.", rich_help_panel="Recipe")]
StepSize = Annotated[float | None, typer.Option(help="Length of an update.", rich_help_panel="Recipe")]
Eta = Annotated[
    float | None, typer.Option(help="Weight of the text against preservation, 0 to 1.", rich_help_panel="Recipe")
]
Intervals = Annotated[int | None, typer.Option(help="Intervals of the grid.", rich_help_panel="Recipe")]
Augmentations = Annotated[
    int | None, typer.Option(help="Random views of each image in an iteration.", rich_help_panel="Recipe")
]
Setting = Annotated[
    list[str] | None, typer.Option("--set", help="Any other key: --set momentum=0.5.", rich_help_panel="Recipe")
]


def numbers(written: str, option: str) -> tuple[float, ...]:
    """Read "-1,0,1". Raises UsageError naming the option."""
    try:
        values = tuple(float(part) for part in written.split(",") if part.strip())
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)):
        raise UsageError(f"{option} takes numbers with commas between them, like -1,0,1; got {written!r}")
    return values


def model_name(model: str | None) -> str | None:
    """The name in the configuration of a model that was given by name, file or folder."""
    if model is None:
        return None
    from flowgrad.models import load_config

    return load_config(model).name


def chosen_recipe(name: str, settings: list[str] | None, seed: int, **changes: object) -> "Recipe":
    """The recipe with what the user changed; options that were not given leave it as it is.

    Raises UsageError for an unknown key or a value out of range.
    """
    from directions.train.recipe import load_recipe

    recipe = load_recipe(name, **changed(settings, **changes))
    recipe.settings(seed)  # values that only Algorithm 1 refuses
    return recipe


def changed(settings: list[str] | None, **options: object) -> dict[str, object]:
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
