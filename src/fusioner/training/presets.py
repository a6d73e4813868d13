"""The two ready-made settings. Change a number here and both the command line and Python follow."""

from fusioner.errors import FusionerError
from fusioner.training.config import TrainConfig

PAPER = TrainConfig()
"""Every official default: CLIP ViT-L/14 at 224 px, 12 x 512 fusion, one prompt an image, 510 epochs of batch 32."""

SMALL = TrainConfig(
    # Encoders that ship with the package; the second one says in words what each patch looks like.
    image_encoder="dinov2-s-embedded+effnet-lite2",
    text_encoder="minilm-embedded",
    similarity="posterior",
    # A chickadee is a bird, whatever the text encoder makes of it.
    kinds=True,
    # The first encoder knows which patches belong together: what is said of some holds for all of them.
    affinity=True,
    # 24 x 24 tokens: objects of a fifteenth of the frame still have their own.
    resolution=336,
    normalisation="encoder",
    # Over half a million weights: what a thousand photographs can fill.
    width=128,
    layers=2,
    heads=4,
    decoder_widths=(64, 32),
    # A hidden label must be found by similarity alone, as an unseen one is.
    prompt_dropout=0.5,
    # Hundreds of looks at once, which so light a network would need long to learn.
    memory=True,
    # Nearly as good from a quarter of the patches at a time, in a sixth of the time.
    memory_share=0.25,
    # Chosen on training images by how well single patches are told apart without any training.
    templates=("{}", "a photo of a {}."),
    # Keeps how strongly an image answers at all, so that absent names can be refused.
    decoder_norm="layer",
    logit_bias=True,
    # Several prompts an image cost little beside its tokens, and absent ones teach refusal.
    sampling="images",
    prompts=4,
    choice_weight=1.0,
    features="cached",
    views=1,
    mirror=True,
    # Minutes on two cores.
    steps=300,
    epochs=0,
    batch_size=6,
    warmup=0.05,
    decoder_schedule="cosine",
    clip=1.0,
    # 84 x 84 logits: finer than the tokens, at a sixteenth of the pixels.
    loss_stride=4,
    holdout=32,
    evaluations=6,
    # Logits are coarse; on training images of all four folds' unseen classes edges of the photograph help.
    refine=True,
)
"""Minutes on two cores, nothing to download."""

PRESETS = {"small": SMALL, "paper": PAPER}


def preset(name: str) -> TrainConfig:
    """A preset by name; FusionerError when there is none."""
    if name not in PRESETS:
        raise FusionerError(f"there is no preset {name!r}; choose {' or '.join(PRESETS)}")
    return PRESETS[name]
