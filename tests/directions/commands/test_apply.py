"""`apply-direction` on many photos: what is reported, what is skipped, and what a failure leaves behind."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image
from typer.testing import Result

from directions.bank.bank import Bank
from directions.file.direction import Direction, DirectionInfo
from flowgrad.models import load_model
from tests.helpers.command_line import call, failed
from tests.helpers.paths import ROOT, killed_write
from tests.helpers.tiny import Tiny, make_photos

pytestmark = pytest.mark.usefixtures("home")


@pytest.fixture(scope="module")
def bank(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bank with the direction "smiling", which changes every pixel."""
    folder = tmp_path_factory.mktemp("bank")
    info = DirectionInfo("Smile", "tiny", load_model(str(tiny.model), "cpu", "fp32").fingerprint, 6)
    Bank(folder).add(Direction.create(np.full((2, 3, 16, 16), 0.3), np.array([0, 3]), info), "smiling")
    return folder


@pytest.fixture
def apply(tiny: Tiny, bank: Path):
    def run(*arguments: object, spec: str = "smiling") -> Result:
        return call("apply-direction", spec, *arguments, "--model", tiny.model, "--bank", bank)

    return run


def edited() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(Path("edited").iterdir())}


def full_after(count: int, monkeypatch: pytest.MonkeyPatch, number: int = errno.ENOSPC) -> None:
    """Let the disk be full when `count` files were written, in the middle of the next."""
    written, write = Counter[str](), Path.write_bytes

    def refuse(path: Path, content: bytes) -> int:
        written["files"] += 1
        if written["files"] > count:
            write(path, content[:10])
            raise OSError(number, os.strerror(number), str(path))
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", refuse)


# --- going on ---------------------------------------------------------------------------------------------------


def test_a_rerun_does_what_is_left(tiny: Tiny, apply) -> None:
    assert apply(*tiny.files[:2]).exit_code == 0
    before = edited()
    assert apply(*tiny.files).exit_code == 1
    Path("edited/photo-2-smiling.png").unlink()
    result = apply(*tiny.files, "--skip-existing")
    assert result.exit_code == 0 and "1 of 4 photos written to edited, 3 skipped" in result.output
    assert edited().items() >= before.items() and len(edited()) == 4
    again = apply(tiny.files[0], "--skip-existing", "--json")
    (record,) = json.loads(again.stdout)["files"]
    assert again.exit_code == 0 and record["skipped"] and record["output"] == "edited/photo-0-smiling.png"
    failed(apply(*tiny.files, "--skip-existing", "--overwrite"), 2, "--skip-existing", "--overwrite")


@pytest.mark.parametrize("option", ["--overwrite", "--skip-existing"])
def test_a_rerun_removes_what_a_killed_run_had_begun(tiny: Tiny, apply, option: str) -> None:
    assert apply(*tiny.files[:2]).exit_code == 0
    left = killed_write(Path("edited/photo-1-smiling.png"))
    assert left.exists() and apply(*tiny.files[:2], option).exit_code == 0
    assert sorted(edited()) == ["photo-0-smiling.png", "photo-1-smiling.png"]


def test_photos_that_are_skipped_are_not_read(tiny: Tiny, apply, monkeypatch: pytest.MonkeyPatch) -> None:
    assert apply(*tiny.files).exit_code == 0
    monkeypatch.setattr("directions.apply.files.read_changed", lambda *_, **__: pytest.fail("a photo is read"))
    assert apply(*tiny.files, "--skip-existing").exit_code == 0


@pytest.mark.parametrize("more", [(), ("--crop",), ("--strengths=-1,1",), ("--crop", "--strengths=-1,1")])
def test_a_sheet_shows_skipped_photos_too(
    tiny: Tiny, apply, more: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert apply(*tiny.files, "--grid", *more).exit_code == 0
    whole = edited()
    (sheet,) = (name for name in whole if "sheet" in name)
    for path in (sheet, next(name for name in whole if name.startswith("photo-1"))):
        Path("edited", path).unlink()
        result = apply(*tiny.files, "--grid", "--skip-existing", *more)
        assert result.exit_code == 0 and f"wrote edited/{sheet}" in result.output and edited() == whole
    monkeypatch.setattr("directions.apply.files.read_changed", lambda *_, **__: pytest.fail("a photo is read"))
    assert apply(*tiny.files, "--grid", "--skip-existing", *more).exit_code == 0 and edited() == whole


@pytest.mark.parametrize("as_json", [False, True])
def test_a_disk_that_is_full_in_the_middle_leaves_whole_files(
    tiny: Tiny,
    apply,
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    more = ("--json",) if as_json else ()
    assert apply(*tiny.files, "-o", "whole").exit_code == 0
    with monkeypatch.context() as patched:
        full_after(2, patched)
        result = apply(*tiny.files, *more)
    assert result.exit_code == 1 and result.stderr.count("No space left") == 1 and "--skip-existing" in result.stderr
    assert list(edited()) == ["photo-0-smiling.png", "photo-1-smiling.png"]
    if as_json:
        answer = json.loads(result.stdout)
        assert [len(answer["files"]), "No space left" in answer["error"]] == [2, True]
    else:
        assert result.stdout.splitlines() == [f"wrote edited/{name}" for name in edited()]
    assert apply(*tiny.files, "--skip-existing").exit_code == 0
    assert edited() == {path.name: path.read_bytes() for path in Path("whole").iterdir()}


def test_a_folder_that_cannot_be_written_to_is_noticed_before_a_model_is_loaded(
    tiny: Tiny,
    apply,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("file").write_text("")
    monkeypatch.setattr("flowgrad.models.load_model", lambda *_: pytest.fail("a model is loaded"))
    failed(apply(*tiny.files, "--output", "file/below"), 2, "cannot write to file/below", "file is a file")


# --- names ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "shown"),
    [(b"caf\xe9.png", r"caf\xe9"), (b"\x1b[31mred\n.png", r"\x1b[31mred\x0a"), ("\x9b31m.png".encode(), r"\x9b31m")],
)
def test_odd_names_are_shown_escaped_and_answered_in_json(tiny: Tiny, apply, name: bytes, shown: str) -> None:
    photos = Path("photos")
    photos.mkdir()
    for odd, content in ((name, tiny.files[0].read_bytes()), (b"bad-" + name, b"")):
        (photos / os.fsdecode(odd)).write_bytes(content)
    result = apply(photos, "--grid", "--strengths=0,1")
    assert result.exit_code == 1 and f"wrote edited/{shown}" in result.stdout and f"bad-{shown}" in result.stderr
    assert not set(result.output) & set("\x1b\x9b")
    answer = apply(photos, "--json").stdout_bytes.decode()
    assert not set(answer) & set("\x1b\x9b")
    good, bad = sorted(json.loads(answer)["files"], key=lambda record: bool(record["error"]))
    assert bad["error"] and Path(good["output"]).is_file() and os.fsencode(good["photo"]) == b"photos/" + name


def test_names_of_the_greatest_length_are_written(tiny: Tiny, apply) -> None:
    photo = Path("x" * 251 + ".png")
    photo.write_bytes(tiny.files[0].read_bytes())
    assert apply(photo).exit_code == 0
    (name,) = edited()
    assert len(name) == 255 and name.endswith("xx-smiling.png")


# --- strips -----------------------------------------------------------------------------------------------------


def test_a_strip_shows_the_photo_at_its_own_resolution(tiny: Tiny, apply) -> None:
    with Image.open(tiny.files[0]) as image:
        image.resize((300, 200), Image.Resampling.BICUBIC).save("wide.png")
    assert apply("wide.png", "--strengths=0,1").exit_code == 0
    assert apply("wide.png").exit_code == 0
    with Image.open("edited/wide-smiling-strip.png") as strip:
        pixels, shapes = np.asarray(strip.convert("RGB")), []
        for path, left in (("wide.png", 16), ("edited/wide-smiling.png", 16 + 300 + 6)):
            shapes.append(np.asarray(Image.open(path).convert("RGB")))
            top = strip.height - 16 - 20 - 200
            assert (pixels[top : top + 200, left : left + 300] == shapes[-1]).all()
    assert (shapes[0] != shapes[1]).any()
    assert apply("wide.png", "--strengths=0,1", "--crop").exit_code == 0
    with Image.open("edited/wide-smiling-crop-strip.png") as strip:
        assert strip.width < 2 * 160  # the model's crops, enlarged to 128 pixels


def test_a_strip_names_the_directions_own_strengths(tiny: Tiny, apply) -> None:
    assert apply(tiny.files[0], "--strengths=0,2", "-o", "a", spec="smiling:0.5").exit_code == 0
    assert apply(tiny.files[0], "--strengths=0,1", "-o", "b").exit_code == 0
    strips = [Path("a/photo-0-smiling@0.5-strip.png"), Path("b/photo-0-smiling-strip.png")]
    assert strips[0].read_bytes() == strips[1].read_bytes()


# --- many photos ------------------------------------------------------------------------------------------------

MEASURED = """
import json, sys, time
import psutil
import cli, directions.apply.files as files, directions.commands.apply as command
from directions.photo import faces

process, read, save, times, memory = psutil.Process(), files.read_changed, files._save, {}, []

def first_read(*given, **more):
    times.setdefault("read", time.monotonic())
    return read(*given, **more)

def counted(*given):
    outcome = save(*given)
    times.setdefault("written", time.monotonic())
    memory.append(process.memory_info().rss)
    return outcome

files.read_changed, files._save = first_read, counted
try:
    cli.app(sys.argv[1:], standalone_mode=False)
finally:
    grown = (memory[-1] - memory[99]) / 1e6
    print(json.dumps([len(memory), grown, times["written"] - times["read"]]), file=sys.stderr)
"""


@pytest.mark.slow
@pytest.mark.parametrize("more", [(), ("--grid",), ("--strengths=-1,1", "--json")])
def test_memory_does_not_grow_with_the_number_of_photos(tiny: Tiny, bank: Path, more: tuple[str, ...]) -> None:
    photos = make_photos(Path("photos"), 600, 64)
    arguments = ("apply-direction", "smiling", photos, "--model", tiny.model, "--bank", bank, *more)
    measured = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    count, grown, _ = json.loads(measured.stderr.splitlines()[-1])
    assert count == 600 and grown < 50, f"{grown:.0f} MB"
    sheets = len(list(Path("edited").glob("contact-sheet-*")))
    assert len(edited()) == 600 + sheets and sheets == (6 if "--grid" in more else 0)
    if "--json" in more:
        assert len(json.loads(measured.stdout)["files"]) == 600
    else:
        assert measured.stdout.count("wrote edited/photo-") == 600


COMMAND = """
import os, sys
os.sched_getaffinity = lambda process: {0, 1}  # a second core, for a process beside this one
import cli
cli.main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="processes are forked on Linux alone")
@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_no_process_outlives_the_command(tiny: Tiny, bank: Path, signal: str) -> None:
    pytest.importorskip("dlib", reason="needs the extra `faces`")
    import signal as signals

    photos = make_photos(Path("photos"), 40, 400)
    arguments = ("apply-direction", "smiling", photos, "--model", tiny.model, "--bank", bank, "--align", "auto")
    command = [sys.executable, "-c", COMMAND, *map(str, arguments)]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as running:
        assert running.stdout and running.stdout.readline()  # the first photo is written: others are searched
        children = psutil.Process(running.pid).children(recursive=True)
        running.send_signal(signals.Signals[signal])
    assert len(children) == 1
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
