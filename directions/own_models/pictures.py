"""Pictures to train on, brought to one size in the run's folder."""

from pathlib import Path

from directions.progress import Reporter
from flowgrad.errors import UsageError
from flowgrad.training.data.pictures import ImageSet, load_images, prepare_images
from flowgrad.workers import Workers


def refuse_among(source: str | Path, output: Path) -> None:
    """Raise UsageError if what is written would be found among the pictures when the run goes on."""
    if Path(source).is_dir() and output.resolve().is_relative_to(Path(source).resolve()):
        raise UsageError(f"{output} lies among the pictures in {source}: choose another folder by --output")


def prepare_pictures(
    source: str | Path, size: int, output: Path, key: str, reporter: Reporter, workers: Workers
) -> ImageSet:
    """Prepare a source's pictures in the leading process, and say which were left out; see `prepare_images`.

    key: that of the data of the run that goes on; empty for a new one.
    """
    folder = output / "training"
    if workers.leads:
        for _ in reporter.track(prepare_images(source, size, folder, key.partition(" ")[0]), "preparing pictures"):
            pass
    workers.wait()
    images = load_images(folder)
    if workers.leads and images.skipped:
        reporter.warn(f"left out of {source}: {images.left_out}")
    return images
