"""The presets. The command line and Python both start from them."""

from fusioner.errors import FusionerError
from fusioner.training.config import DataOptions, ModelOptions, OptimOptions, TrainConfig

PAPER = TrainConfig()
"""The official defaults: CLIP ViT-L/14 at 224 px, 12 x 512 fusion, one prompt per image, 510 epochs of batch 32."""

SMALL = TrainConfig(
    ModelOptions(
        # Bundled encoders; the second one classifies patches.
        image_encoder="dinov2-s-embedded+effnet-lite2",
        text_encoder="minilm-embedded",
        # Best on training images by per-patch classification without training.
        templates=("{}", "a photo of a {}."),
        # 24 x 24 tokens resolve objects of a fifteenth of the frame.
        resolution=336,
        normalisation="encoder",
        # Over half a million weights, enough for a thousand images.
        width=128,
        layers=2,
        heads=4,
        decoder_widths=(64, 32),
        # Per-pixel normalisation keeps the response strength, so that absent labels can be rejected.
        decoder_norm="layer",
        logit_bias=True,
        similarity="auto",
        # Match "bird" to "chickadee" whatever the text encoder's cosine.
        hypernyms=True,
        affinity_refinement=True,
        # Hidden labels must be found by similarity alone, as unseen ones are.
        prompt_dropout=0.5,
        # Learns hundreds of classes at once, which this light network would learn slowly.
        closed_set_head=True,
        # A quarter of the patches gives nearly the same quality in a sixth of the time.
        closed_set_patch_ratio=0.25,
        # Logits are coarse; on training images of all four folds the filter helps unseen classes.
        guided_filter=True,
    ),
    DataOptions(
        # Further prompts cost little beside the image tokens, and absent ones teach rejection.
        sampling="images",
        prompts=4,
        features="cached",
        views=1,
        horizontal_flip=True,
        val_images=32,
    ),
    OptimOptions(
        # Minutes on two cores.
        steps=300,
        epochs=0,
        batch_size=6,
        warmup=0.05,
        decoder_schedule="cosine",
        grad_clip=1.0,
        ce_weight=1.0,
        # 84 x 84 logits: finer than the tokens, at a sixteenth of the pixels.
        loss_stride=4,
        evaluations=6,
    ),
)
"""Minutes on two cores, without downloads."""

_HUB = SMALL.override(hypernyms=False, closed_set_head=False, templates=())  # neither applies without a classifier

PROXY = _HUB.override(image_encoder="dinov2-b+maskclip-vit-b16", text_encoder="clip-text-b16")
"""`SMALL` on downloaded encoders: similarity from CLIP's values, affinity from DINOv2, as in ProxyCLIP."""

ALIGNED = _HUB.override(image_encoder="tipsv2-b", text_encoder="tipsv2-text-b")
"""`SMALL` on one encoder whose patches are aligned with text: similarity and affinity are its own."""

PRESETS = {"small": SMALL, "paper": PAPER, "proxy": PROXY, "aligned": ALIGNED}


def preset(name: str, fold: int | None = None) -> TrainConfig:
    """Return a preset by name; for a fold without closed-set head, which lowers recall on unseen classes."""
    if name not in PRESETS:
        raise FusionerError(f"there is no preset {name!r}; choose {', '.join(PRESETS)}")
    return PRESETS[name] if fold is None else PRESETS[name].override(closed_set_head=False)
