"""What a pool of a model's samples shows by nature, as a guide tells it: moments that a sampler can reach."""

from directions.sampler.train import POOL_SEED, moments_of
from flowgrad.guidance.classes import Classes
from flowgrad.guidance.guide_files import load_guide
from flowgrad.models import load_model
from flowgrad.ode import Grid
from flowgrad.sampling.latent import Generator
from tests.helpers.tiny import Tiny


def natural_shares(tiny: Tiny, attribute: str, pool: int, intervals: int = 2) -> list[float]:
    """The mean probabilities of the answers to a question, which sum to 1, over the pool of seed 0."""
    model = load_model(str(tiny.model), "cpu", "fp32")
    classes = Classes(load_guide(str(tiny.guide)), model.config.classes).select([attribute])
    images = Generator(model, Grid.uniform(model.config.steps, intervals)).images(model.noise(pool, POOL_SEED))
    first = [round(share, 9) for share in moments_of(classes, images).mean(0).tolist()[:-1]]
    return [*first, round(1 - sum(first), 9)]
