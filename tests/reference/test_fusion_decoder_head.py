"""Compare the paper's network with the tensors of the official implementation."""

import torch
from torch import Tensor

from fusioner.model.fusioner import Fusioner
from fusioner.model.head import cosine_logits

Golden = tuple[dict[str, Tensor], dict[str, str]]


def close(ours: Tensor, theirs: Tensor) -> bool:
    return bool((ours - theirs).abs().max() <= 1e-5 * theirs.abs().max())


@torch.no_grad()
def test_every_stage_is_reproduced(golden_network: Fusioner, golden_fusion: Golden) -> None:
    tensors, sizes = golden_fusion
    grid, target = int(sizes["grid"]), int(sizes["target_size"])
    patches, classes = golden_network.fusion(tensors["input.visual"], tensors["input.text"])
    assert close(patches, tensors["output.patches"])
    assert close(classes, tensors["output.classes"])
    assert golden_network.decoder is not None
    decoded = golden_network.decoder(
        tensors["output.patches"].transpose(1, 2).unflatten(2, (grid, grid)), (target, target)
    )
    assert close(decoded, tensors["output.decoded"])
    logits = cosine_logits(tensors["output.decoded"], tensors["output.classes"], golden_network.config.temperature)
    assert close(logits, tensors["output.logits"])


@torch.no_grad()
def test_the_whole_pipeline_is_reproduced(golden_network: Fusioner, golden_fusion: Golden) -> None:
    tensors, sizes = golden_fusion
    grid, target = int(sizes["grid"]), int(sizes["target_size"])
    tokens = tensors["input.visual"].transpose(1, 2).unflatten(2, (grid, grid))
    assert close(golden_network(tokens, tensors["input.text"], (target, target)), tensors["output.logits"])
