"""scikit-learn's bundled digits, resized, with a fixed split: real images without a download."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

IMAGE_SIZE = 16
TEST_IMAGES = 360


@dataclass(frozen=True)
class Images:
    """Images `[N, 1, size, size]` of mean 0 and variance 1, and their digits `[N]`."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Digits:
    """1,437 images to train on and 360 to test on, each with the same share of every digit."""

    train: Images
    test: Images


def load_digits(size: int = IMAGE_SIZE) -> Digits:
    """The 1,797 digits of 8x8 pixels, resized to `size` and split, always in the same way."""
    try:
        from sklearn import datasets, model_selection
    except ImportError as error:
        raise SystemExit(
            'the digits come with scikit-learn, which is missing: pip install -e ".[examples]"'
        ) from error
    bunch = datasets.load_digits()
    train, test = model_selection.train_test_split(
        range(len(bunch.target)), test_size=TEST_IMAGES, stratify=bunch.target, random_state=0
    )
    images = torch.tensor(bunch.images, dtype=torch.float32).unsqueeze(1)
    images = F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)
    images = (images - images[train].mean()) / images[train].std()
    labels = torch.tensor(bunch.target)
    return Digits(Images(images[train], labels[train]), Images(images[test], labels[test]))
