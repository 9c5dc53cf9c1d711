"""The command line, in which trainings of models save a checkpoint after every step: to be killed and to go on.

python -m tests.helpers.often train-flow PICTURES ...
"""

from functools import partial

from cli import main
from flowgrad.training.loop import run

if __name__ == "__main__":
    run.RunOptions = partial(run.RunOptions, checkpoint_minutes=0)  # type: ignore[assignment,misc]
    main()
