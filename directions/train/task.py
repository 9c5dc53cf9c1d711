"""What a training is asked for, and Algorithm 1 on it: a text, about ten images, a recipe."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from directions.apply.inversion import Inverted
from directions.file.texts import check_texts, check_words
from directions.train.recipe import Recipe, load_recipe, usual_recipe
from flowgrad.errors import UsageError
from flowgrad.guidance.contrast import Contrast
from flowgrad.guidance.guide import Guide
from flowgrad.guidance.guide_files import load_guide
from flowgrad.guidance.preserve import load_distance
from flowgrad.guidance.text import TextObjective
from flowgrad.models import Model
from flowgrad.ode import Grid
from flowgrad.optimize import State, Step, optimize
from flowgrad.threads import abreast
from flowgrad.workers import ALONE, Share, Workers


@dataclass(frozen=True)
class Task:
    """What is asked for: raise `target` on all of `photos`, and keep the texts of `keep`.

    workers: the processes that share the computing out; each has all photos.
    """

    model: Model
    guide: Guide
    photos: Inverted
    target: Contrast
    keep: tuple[Contrast, ...]
    recipe: Recipe
    seed: int = 0
    workers: Workers = ALONE

    @classmethod
    def create(
        cls,
        model: Model,
        photos: Inverted,
        text: str,
        *,
        guide: Guide | None = None,
        source: str | None = None,
        keep: Sequence[str] = (),
        recipe: Recipe | None = None,
        seed: int = 0,
        force: bool = False,
        workers: Workers = ALONE,
    ) -> "Task":
        """Fill in what is not given: the configured guide of the model, its subject as source text, the usual recipe.

        Raises UsageError for no photo, and for texts that `checks` refuses: one of which the guide knows no word may
        be tried with `force`.
        """
        if not len(photos):
            raise UsageError("a direction needs at least one photo; ten are a good number")
        target, kept = check_texts(text, source, keep, model.config.subject)
        guide = guide or load_guide(model.config.guide, model.device)
        recipe = recipe or load_recipe(usual_recipe(keep))
        check_words(target, guide.vocabulary, force)
        return cls(model, guide, replace(photos, anchored=recipe.anchored), target, kept, recipe, seed, workers)

    @property
    def unknown_words(self) -> list[str]:
        """Words of the texts that the guide has never seen, once each."""
        texts = [t for c in (self.target, *self.keep) for t in (c.text, c.source)]
        return list(dict.fromkeys(word for text in texts for word in self.guide.unknown_words(text)))

    def grid(self) -> Grid:
        """The grid that the control lives on, from the straightness of the photos' trajectories."""
        return self.photos.grid(self.recipe.intervals, self.recipe.xi)

    def share(self, count: int) -> Share:
        """This process's share of so many images."""
        return self.recipe.share(count, self.model.batch, self.workers)

    def steps(self, shared: bool = True, resume: State | None = None) -> Iterator[Step]:
        """Run Algorithm 1 and yield every evaluation; a control for each photo unless `shared`."""
        share = self.share(len(self.photos))
        model, photos, recipe = self.model, self.photos.select(share.rows), self.recipe
        objective = TextObjective(
            self.guide,
            self.target,
            photos.images,
            load_distance(recipe.preserve, model.device),
            self.keep,
            recipe.eta,
            recipe.keep_weight,
            recipe.augmentations,
            share,
        )
        settings = recipe.settings(self.seed, mirror=shared and model.config.mirror)
        return optimize(
            model.velocity.in_groups(share.group),
            photos.x0,
            self.grid(),
            objective,
            settings,
            shared=shared,
            path=photos.path,
            resume=resume,
            store=model.store,
            share=share,
            decode=model.decode,
            at_once=1 if model.in_latents else share.group,
            abreast=abreast(model.config.size),
        )
