"""What `train-flow` trains on: pictures, or pairs drawn from a flow."""

from dataclasses import dataclass
from pathlib import Path

from flowgrad.errors import UsageError


@dataclass(frozen=True)
class FlowSource:
    """`images` (see `flowgrad.training.data.pictures`), or as many `pairs` of the model `reflow`.

    pair_steps: Euler steps of each pair. splits: a CSV file with the columns file and split. start: a model to begin
    with (that of `reflow` if there is one). autoencoder: whose latents of the images the flow is in: a folder, a
    model's name, or a name on the Hugging Face hub; a model to begin with has its own. Raises UsageError unless one
    source is given, and for what does not go with it.
    """

    images: str | Path | None = None
    reflow: str | None = None
    pairs: int | None = None
    pair_steps: int | None = None
    splits: Path | None = None
    start: str | None = None
    autoencoder: str | None = None

    def __post_init__(self) -> None:
        if (self.images is None) == (self.reflow is None):
            raise UsageError("give either pictures to train on, or --reflow with a model to straighten")
        if self.autoencoder and self.origin:
            raise UsageError(f"--autoencoder is for a new flow; {self.origin} has its own, or none")
        if self.reflow is not None and self.splits is not None:
            raise UsageError("--splits is for pictures; --reflow trains on pairs that it draws")
        if self.reflow is None and (self.pairs, self.pair_steps) != (None, None):
            raise UsageError("--pairs and --pair-steps are of what --reflow draws: name the model to straighten by it")

    @property
    def drawn(self) -> tuple[int, int]:
        """How many pairs --reflow draws, and Euler steps of each."""
        return (20_000 if self.pairs is None else self.pairs), (50 if self.pair_steps is None else self.pair_steps)

    @property
    def origin(self) -> str | None:
        """The model whose weights training begins with."""
        return self.start or self.reflow
