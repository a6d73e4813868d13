"""The patches that labels are measured against, see `model.similarity`: drawn from training images, masks unread."""

from collections.abc import Sequence

import torch

from fusioner.features.build import Track
from fusioner.features.dataset import TokenSource
from fusioner.model.fusioner import Fusioner
from fusioner.training.dataset import Corpus


def draw_reference(
    model: Fusioner, corpus: Corpus, sources: Sequence[TokenSource], track: Track | None = None, seed: int = 0
) -> None:
    """Fill the model's reference with aligned tokens, one of each of as many training images as there are places.

    Of fewer images each gives several. `track` draws a bar.

    Raises:
        FusionerError: an unreadable image.
    """
    places = model.get_buffer("similarity.reference")
    count = places.shape[1]
    images = corpus.some_images(count, seed)
    generator, found = torch.Generator().manual_seed(seed), []
    for number, example in enumerate(track(images, "looking around") if track else images):
        tokens, _ = sources[example.part].batch([(example.item, 0)])
        aligned = model.split(tokens.cpu())[1][0].flatten(1).float()  # (A, P)
        share = (number + 1) * count // len(images) - number * count // len(images)
        found.append(aligned[:, torch.randint(aligned.shape[1], (share,), generator=generator)])
    places.copy_(torch.cat(found, dim=1))
