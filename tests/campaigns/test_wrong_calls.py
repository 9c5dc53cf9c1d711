"""150 wrong calls: each ends with the code of a wrong call or of a failed job, and says what is wrong, in short."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from directions.bank.bank import Bank
from directions.file.direction import write_direction
from directions.file.sampler import SamplerFile
from tests.directions.file.test_sampler_file import INFO as SAMPLER
from tests.helpers.bank_process import add, direction
from tests.helpers.command_line import call

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("home")]

LONG = "x" * 200_000
T = "train-direction --samples 2 --name new --text"
SMILE = f"{T} 'a smiling face'"
A = "apply-direction mine photo.png"
DRAW = "sampler train --name new --text 'a smiling face'"
PAINT = "paint photo.png"
CALLS: list[tuple[str, int, tuple[str, ...]]] = [
    # texts
    (f"{T} ''", 2, ("empty",)),
    (f"{T} ' '", 2, ("empty",)),
    (f"{T} ' - a face'", 2, ("empty",)),
    (f"{T} 'a face'", 2, ("a face", "its own source")),
    (f"{T} 'A FACE'", 2, ("its own source",)),
    (f"{T} 'a smile' --source ' A  smile'", 2, ("its own source",)),
    (f"{T} 'qwertz'", 2, ("qwertz", "no word")),
    (f"{T} '微笑'", 2, ("微笑", "no word")),
    (f"{T} '!!!'", 2, ("!!!", "no word")),
    (f"{T} 'the'", 2, ("no word",)),
    (f"{T} {LONG}", 2, ("text", "1,000", "200000")),
    (f"{T} 'a smile' --source {LONG}", 2, ("source_text", "1,000")),
    (f"{T} 'a smile' --keep {LONG}", 2, ("keep", "1,000")),
    (f"{T} 'a smile' --keep ''", 2, ("empty",)),
    (f"{T} 'a smile' --keep 'a man - a man'", 2, ("a man", "its own source")),
    (f"{T} 'a smile\\x1b[2J'", 2, ("text", "control characters")),
    (f"{T} 'a smile \\u202e'", 2, ("text", "control characters")),
    # names, titles, tags, descriptions
    (f"{SMILE} --name Smile", 2, ("Smile", "cannot name a direction")),
    (f"{SMILE} --name ../up", 2, ("../up", "cannot name a direction")),
    (f"{SMILE} --name ''", 2, ("cannot name a direction",)),
    (f"{SMILE} --name con", 2, ("con", "cannot name a direction")),
    (f"{SMILE} --name {LONG}", 2, ("cannot name a direction",)),
    (f"{SMILE} --name mine", 2, ("mine.safetensors", "exists already", "--overwrite")),
    (f"{SMILE} --title {LONG}", 2, ("title", "200")),
    (f"{SMILE} --title ' '", 2, ("title", "one line")),
    (f"{SMILE} --title 'a\\nb'", 2, ("title", "one line")),
    (f"{SMILE} --tag 'a,b'", 2, ("tag", "a,b")),
    (f"{SMILE} --tag ' a'", 2, ("tag", "outer space")),
    (f"{SMILE} --tag {LONG}", 2, ("tags", "1,000")),
    (f"{SMILE} {'--tag x ' * 101}", 2, ("tags", "100", "101")),
    (f"{SMILE} --description {LONG}", 2, ("description", "10,000", "200000")),
    (f"{SMILE} --description '\\x07'", 2, ("description", "control characters")),
    # numbers
    (f"{SMILE} --seed -1", 2, ("--seed", "-1")),
    (f"{SMILE} --seed {1 << 64}", 2, ("--seed", str(1 << 64))),
    (f"{SMILE} --seed 1.5", 2, ("--seed", "valid integer")),
    (f"{SMILE} --samples -1", 2, ("--samples",)),
    (f"{SMILE} --samples 0", 2, ("either photos",)),
    (f"{SMILE} --calibration-photos 0", 2, ("--calibration-photos",)),
    (f"{SMILE} --iterations 0", 2, ("iterations", "greater than or equal to 1", "got 0")),
    (f"{SMILE} --step-size 0", 2, ("step_size", "greater than 0")),
    (f"{SMILE} --step-size nan", 2, ("step_size", "nan")),
    (f"{SMILE} --eta -0.1", 2, ("eta", "-0.1")),
    (f"{SMILE} --eta nan", 2, ("eta", "nan")),
    (f"{SMILE} --intervals -1", 2, ("intervals", "-1")),
    (f"{SMILE} --intervals 999", 2, ("intervals", "50", "999")),
    (f"{SMILE} --augmentations 0", 2, ("augmentations", "got 0")),
    # recipes
    (f"{SMILE} --recipe nosuch", 2, ("nosuch", "default")),
    (f"{SMILE} --recipe none.yaml", 2, ("none.yaml does not exist",)),
    (f"{SMILE} --recipe list.yaml", 2, ("list.yaml", "table")),
    (f"{SMILE} --recipe broken.yaml", 2, ("broken.yaml", "not a readable YAML")),
    (f"{SMILE} --set momentun=1", 2, ("momentun", "did you mean 'momentum'")),
    (f"{SMILE} --set momentum=1", 2, ("momentum", "less than 1")),
    (f"{SMILE} --set momentum=much", 2, ("momentum", "much")),
    (f"{SMILE} --set momentum", 2, ("KEY=VALUE",)),
    (f"{SMILE} --set =1", 2, ("unknown key",)),
    (f"{SMILE} --set optimizer=sdg", 2, ("optimizer", "sgd", "sdg")),
    (f"{SMILE} --set intervals=51", 2, ("intervals", "50", "51")),
    (f"{SMILE} --set xi=-1", 2, ("xi", "-1")),
    # models, guides, devices
    (f"{SMILE} --model faces46", 2, ("faces46", "faces64")),
    (f"{SMILE} --model ''", 2, ("model",)),
    (f"{SMILE} --model list.yaml", 2, ("list.yaml", "table")),
    (f"{SMILE} --guide face64-guide", 2, ("face64-guide", "faces64-guide")),
    (f"{SMILE} --guide damaged.safetensors", 1, ("damaged.safetensors", "damaged")),
    (f"{SMILE} --device nosuch", 2, ("nosuch", "cpu")),
    (f"{SMILE} --precision fp8", 2, ("fp8",)),
    # photos
    (f"{SMILE} photo.png", 2, ("either photos",)),
    ("train-direction --name new --text 'a smile'", 2, ("either photos",)),
    ("train-direction no.jpg nor.jpg --name new --text 'a smile'", 2, ("no.jpg, nor.jpg do not exist",)),
    ("train-direction empty --name new --text 'a smile'", 2, ("empty holds no image",)),
    ("train-direction bad.jpg worse.jpg --name new --text 'a smile'", 1, ("2 of 2", "bad.jpg", "worse.jpg")),
    (f"{SMILE} --calibrate-on no.jpg", 2, ("no.jpg does not exist",)),
    # edit
    ("edit no.jpg --text 'a smile'", 2, ("no.jpg does not exist",)),
    ("edit bad.jpg --text 'a smile'", 1, ("bad.jpg is not an image",)),
    ("edit photo.png --text qwertz", 2, ("qwertz", "no word")),
    ("edit photo.png --text 'a smile' --strength inf", 2, ("finite number", "inf")),
    ("edit photo.png --text 'a smile' --intervals 999", 2, ("intervals", "50")),
    # apply-direction and sample
    ("apply-direction mime photo.png", 2, ("mime", "mine")),
    ("apply-direction '' photo.png", 2, ("NAME[:STRENGTH]",)),
    ("apply-direction mine:x photo.png", 2, ("mine:x", "NAME[:STRENGTH]")),
    ("apply-direction mine+ photo.png", 2, ("NAME[:STRENGTH]",)),
    ("apply-direction no.safetensors photo.png", 1, ("no.safetensors", "No such file")),
    ("apply-direction damaged.safetensors photo.png", 1, ("damaged.safetensors", "too short")),
    ("apply-direction other.safetensors+mine photo.png", 2, ("faces128, other", "cannot be added")),
    (f"{A} no.jpg", 2, ("no.jpg does not exist",)),
    (f"{A} --strength nan", 2, ("finite number",)),
    (f"{A} --strengths ''", 2, ("--strengths", "commas")),
    (f"{A} --strengths 1,inf", 2, ("--strengths", "1,inf")),
    (f"{A} --keep-identity -1", 2, ("--keep-identity", "above 0", "-1")),
    (f"{A} --keep-identity 0", 2, ("--keep-identity", "above 0")),
    (f"{A} --face 0", 2, ("--face",)),
    ("sample --direction mime", 2, ("mime", "mine")),
    ("sample --count 0", 2, ("--count",)),
    (f"{A} --face 1 --align never", 2, ("--face 1", "--align never")),
    (f"{A} --strengths 0,1 --keep-identity 0.5", 2, ("--keep-identity", "--strengths")),
    (f"{A} --strengths 0,1 --strength 0.5", 2, ("--strengths", "0.5")),
    (f"{A} --skip-existing --overwrite", 2, ("--skip-existing", "--overwrite")),
    (f"{A} --skip-existing --manifest done.jsonl", 2, ("--skip-existing", "manifest")),
    (f"{A} --copy-unedited --crop", 2, ("--copy-unedited", "--crop")),
    (f"{A} --output photo.png", 2, ("photo.png", "is a file")),
    (f"{A} --manifest s3://bucket/done.jsonl", 2, ("--manifest", "s3://bucket/done.jsonl")),
    (f"{A} --retry", 2, ("--retry", "--manifest")),
    (f"{A} --engine ray --grid", 2, ("--grid", "manifest")),
    (f"{A} --address here:1", 2, ("--address here:1", "--engine ray")),
    ("apply-direction drawn photo.png", 2, ("drawn", "is a sampler", "--sampler")),
    (f"sample --count {10**14}", 2, ("--count", "100000")),
    ("sample --sampler mine", 2, ("mine", "is a direction")),
    ("sample --guide faces64-guide", 2, ("--guide", "--sampler")),
    # samplers
    ("sampler train --name new", 2, ("--text", "--class", "--identity", "--pose")),
    (f"{DRAW} --name New", 2, ("New", "cannot name a sampler")),
    (f"{DRAW} --name {LONG}", 2, ("cannot name a sampler",)),
    (f"{DRAW} --output {LONG}", 2, ("cannot write", "too long")),
    (f"{DRAW} --pool 7", 2, ("--pool", "8")),
    (f"{DRAW} --pool {10**20}", 2, ("--pool", "100000")),
    (f"{DRAW} --intervals 51", 2, ("intervals", "50", "51")),
    (f"{DRAW} --weight 0", 2, ("weight", "above 0")),
    (f"{DRAW} --weight 1e308", 2, ("weight", "1,000,000", "1e+308")),
    (f"{DRAW} --gradients 8", 2, ("--gradients", "--method network")),
    (f"{DRAW} --method network --gradients 1000000", 2, ("--gradients", "100000")),
    (f"{DRAW} --method network --on drawn", 2, ("--on", "--method rejection")),
    (f"{DRAW} --on nosuch", 2, ("nosuch",)),
    (f"{DRAW} --title {LONG}", 2, ("title", "200")),
    (f"{DRAW} --tag 'a,b'", 2, ("tag", "a,b")),
    (f"{DRAW} --description {LONG}", 2, ("description", "10,000")),
    (f"{DRAW} --output photo.png", 2, ("photo.png", "is a file")),
    ("sampler train --name new --text qwertz", 2, ("qwertz", "no word")),
    ("sampler train --name new --class hapy", 2, ("hapy", "happy")),
    ("sampler train --name new --class happy --source 'a face'", 2, ("--source", "--text")),
    ("sampler train --name new --pose 20,-20", 2, ("20, -20", "-90 and 90")),
    ("sampler train --name new --identity no.jpg", 2, ("no.jpg does not exist",)),
    ("sampler debias --name new --attribute gender --target 0.5,0.6", 2, ("gender", "sum to 1")),
    ("sampler evaluate drawn --intervals 51", 2, ("intervals", "N = 6", "51")),
    # painting
    ("paint no.png", 2, ("no.png does not exist",)),
    ("paint empty", 2, ("empty is a folder",)),
    ("paint bad.jpg", 1, ("bad.jpg is not an image",)),
    (f"{PAINT} --count {10**11}", 2, ("--count", "1000")),
    (f"{PAINT} --steps {10**11}", 2, ("--steps", "1000")),
    (f"{PAINT} --strength 1", 2, ("strength", "got 1")),
    (f"{PAINT} --method sdedit --steps 3", 2, ("sdedit", "--steps")),
    (f"{PAINT} --text qwertz", 2, ("qwertz", "no word")),
    (f"{PAINT} --region no.png=old", 2, ("no.png does not exist",)),
    (f"{PAINT} --region mask.png=", 2, ("a region needs a mask and words",)),
    (f"{PAINT} --region 'mask.png=old\x1b[2J'", 2, ("text", "control characters")),
    (f"{PAINT} --region mask.png={LONG}", 2, ("text", "1,000")),
    (f"{PAINT} --save Red", 2, ("Red", "cannot name")),
    (f"{PAINT} --output photo.png", 2, ("photo.png", "is a file")),
    ("paint-evaluate no.zip", 2, ("no.zip does not exist",)),
    ("paint-evaluate empty --splits no.csv", 2, ("no.csv",)),
    ("paint-evaluate empty --steps 1.5", 2, ("--steps", "1.5")),
    # measuring
    ("evaluate mine --photos photo.png --samples 5 --seed 0", 2, ("--samples, --seed", "--methods")),
    ("evaluate mine+mine --photos photo.png --methods direction", 2, ("--methods", "one direction", "2")),
    ("evaluate mine --photos photo.png --methods direction --answer merry", 2, ("merry", "happy")),
    ("evaluate mine --photos photo.png --output photo.png", 2, ("photo.png", "is a file")),
    ("benchmark --text qwertz", 2, ("qwertz", "no word")),
    ("benchmark --factors 0", 2, ("--factors", "got 0.005 and 0")),
    ("bank matrix drawn", 2, ("drawn", "is a sampler")),
    ("evaluate mine --photos photo.png --strengths ''", 2, ("--strengths", "commas")),
    ("evaluate mine --photos photo.png --judge nobody", 2, ("nobody", "faces64-judge")),
    ("benchmark --thresholds ''", 2, ("--thresholds", "commas")),
    # the bank
    ("bank list --model nosuch", 2, ("no model called 'nosuch'", "faces64")),
    ("bank show mime", 2, ("mime", "mine")),
    ("bank remove nosuch/mine", 2, ("nosuch", "mine")),
    ("bank restore mine", 2, ("mine", "nothing")),
    ("bank rename mine Mine", 2, ("Mine", "cannot name a direction")),
    ("bank import damaged.safetensors", 1, ("damaged.safetensors", "too short")),
    ("bank import other.safetensors --name ..", 2, ("cannot name a direction",)),
    ("bank export mine x.zip", 2, ("x.zip", "no folder")),
]


@pytest.fixture(autouse=True)
def files(home: Path) -> None:
    """What the calls name: photos, good and bad, a bank with one direction, one of another model, and damaged files."""
    Image.new("RGB", (64, 64), "grey").save("photo.png")
    Image.linear_gradient("L").save("mask.png")
    for name in ("bad.jpg", "worse.jpg"):
        Path(name).write_text("no image")
    Path("empty").mkdir()
    Path("list.yaml").write_text("[1, 2]")
    Path("broken.yaml").write_text("a: [")
    Path("damaged.safetensors").write_bytes(b"x")
    write_direction(direction("other", model="other"), Path("other.safetensors"))
    add(Bank.default(), "mine", "mine")
    Bank.default().add(SamplerFile(replace(SAMPLER, model="faces128")), "drawn")


def test_there_are_a_hundred_and_fifty() -> None:
    assert len({line for line, *_ in CALLS}) == len(CALLS) >= 150


@pytest.mark.parametrize(
    ("line", "code", "words"), CALLS, ids=lambda value: value[:60] if isinstance(value, str) else ""
)
def test_a_wrong_call_says_what_is_wrong(line: str, code: int, words: tuple[str, ...]) -> None:
    escapes = {"\\x1b": "\x1b", "\\x07": "\x07", "\\u202e": "\u202e", "\\n": "\n"}
    for written, meant in escapes.items():
        line = line.replace(written, meant)
    result = call(*shlex.split(line))
    said = " ".join(result.output.replace("│", " ").split())  # where Typer draws a box, its lines are joined
    assert result.exit_code == code, said[:1000]
    assert all(word in said for word in words), said[:1000]
    assert "Traceback" not in said and "This is a bug" not in said
    assert len(said) < 2000, "the value is repeated at length"
    assert {path.name for path in Path().iterdir()} <= {
        *("photo.png", "mask.png", "bad.jpg", "worse.jpg", "empty", "list.yaml", "broken.yaml"),
        *("damaged.safetensors", "other.safetensors", "own-bank"),
    }, "a wrong call wrote something"
    assert [entry.name for entry in Bank.default().list()] == ["mine"]
