"""Whether two faces are the same person: dlib's descriptor of aligned photos. Needs the extra `faces`."""

import torch
from torch import Tensor

from directions.photo.landmarks import CHIP_PADDING
from flowgrad.errors import UsageError
from flowgrad.guidance.recognizer import available, load_recognizer
from flowgrad.models import Model

# dlib's own threshold on the distance of two descriptors. Measured on 24 UTKFace test photos: 200 against 64 pixels
# 0.05 (median; at most 0.12), against a chip by detected landmarks 0.12 (0.18), against the mirrored photo 0.18 (0.28);
# two people 0.85, one pair in a hundred below 0.6.
SAME_PERSON = 0.6
SURELY_THE_SAME = 0.4  # well below it


def has_faces() -> bool:
    """Return whether the extra `faces` is installed, so that identity can be measured."""
    return available()


def compares_faces(model: Model) -> bool:
    """Whether dlib can say how far a face of this model has become another's."""
    return has_faces() and model.config.aligned_faces


def require_identity(model: Model) -> None:
    """Raise UsageError unless dlib can say how far a face of this model has become another's."""
    if not has_faces():
        raise UsageError("effects at equal identity need the extra `faces`: pip install 'flowgrad[faces]'")
    if not model.config.aligned_faces:
        raise UsageError(f"effects at equal identity need a model of aligned faces, such as faces128; got {model.name}")


@torch.no_grad()
def descriptors(images: Tensor) -> Tensor:
    """(B, 128) descriptors of aligned faces (B, 3, S, S) in [-1, 1].

    Raises FlowgradError without the extra `faces`, or for images that are not square.
    """
    return load_recognizer(CHIP_PADDING, str(images.device))(images)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """Distances (...) between descriptors (..., 128), pair by pair."""
    return torch.linalg.vector_norm(a - b, dim=-1)
