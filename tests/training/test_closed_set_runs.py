"""Training runs with a closed-set head, and the threshold chosen on held-out images."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest
import torch

from fusioner.cli.main import main
from fusioner.data.classes import PASCAL_CLASSES
from fusioner.data.masks import resize_mask
from fusioner.encoders.bundled import minilm_embedded
from fusioner.encoders.prompt_templates import LabelEmbedder
from fusioner.encoders.registry import build_image_encoder
from fusioner.features.dataset import LiveSource
from fusioner.labels import read_word_lists
from fusioner.model.checkpoint import load_model
from fusioner.progress import no_progress
from fusioner.training import closed_set
from fusioner.training.build import build_network
from fusioner.training.closed_set import (
    ClosedSetDataset,
    SampleView,
    draw_views,
    fit_closed_set,
    fit_closed_set_head,
    shared_classes,
)
from fusioner.training.config import TrainConfig
from fusioner.training.data_loader import Batch
from fusioner.training.dataset import CROSS_FIT_FOLDS, build_corpus, cross_fit_fold, open_split
from fusioner.training.losses import THRESHOLDS, iou_counts
from fusioner.training.train import train
from fusioner.training.trainer import RunConfig


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Five steps a fit, for tests that do not measure accuracy."""
    monkeypatch.setattr(closed_set, "MAX_STEPS", 5)


@pytest.fixture
def config(tiny: Callable[..., TrainConfig], clip_folder: Path) -> TrainConfig:
    encoders = f"clip-vit-b16@{clip_folder}+effnet-lite2"
    return tiny(
        image_encoder=encoders,
        text_encoder="minilm-embedded",
        similarity="posterior",
        closed_set_head=True,
        closed_set_epochs=1,
        resolution=64,
        steps=1,
    )


@torch.no_grad()
def test_the_head_scores_the_classes_in_an_image_and_its_folds_are_cross_fitted(
    voc_tree: Path, config: TrainConfig
) -> None:
    config = config.override(closed_set_epochs=3)
    corpus = build_corpus([open_split("pascal", voc_tree)], "images")
    image, text = build_image_encoder(config.model.image_encoder), minilm_embedded()
    embed = LabelEmbedder(text, ("{}",))
    model = build_network(config, image, text, len(corpus.names()))
    source = LiveSource(corpus.splits[0].data, image, config.model.resolution)
    fit_closed_set_head(model, corpus, [source], embed(corpus.names()), config)
    assert model.similarity is not None
    head = model.similarity.closed_set
    assert head is not None
    classes = {1, 2, 3, 8, 12}
    assert {row + 1 for row in head.known.nonzero().flatten().tolist()} == classes
    assert len(head.cross_fit) == CROSS_FIT_FOLDS
    first = [one.first.weight for one in (head.full, *head.cross_fit)]
    assert not any(torch.equal(one, other) for one, other in combinations(first, 2))
    for item in corpus.splits[0].data.items[:6]:
        tokens, masks = source.batch([(item, 0)])
        ids = sorted(set(masks[0].flatten().tolist()) & classes)
        present, absent = (
            embed([PASCAL_CLASSES[i] for i in ids]),
            embed([PASCAL_CLASSES[i] for i in classes - set(ids)]),
        )
        encoded = model.encode_image(tokens)
        assert encoded is not None
        assert encoded.closed_set is not None
        peaks = [head(encoded.closed_set, labels[None])[0][0, :, 0].amax(1) for labels in (present, absent)]
        assert peaks[0].min() > peaks[1].max()
    dataset = ClosedSetDataset(model, corpus, [source], no_progress)
    others = [row for row, sample in enumerate(dataset.samples) if cross_fit_fold(sample.item.id) != 0]
    dataset.samples, dataset.counts = [dataset.samples[row] for row in others], dataset.counts[others]
    for name, split in fit_closed_set(dataset, config).state_dict().items():
        torch.testing.assert_close(head.cross_fit[0].state_dict()[name], split)


def test_names_of_two_data_sets_for_one_thing_share_a_class(
    voc_tree: Path, config: TrainConfig, few_steps: None
) -> None:
    assert shared_classes(["sofa", "dog", "Couch"], {"Sofa": ["couch"], "couch": ["settee", "sofa"]}) == [0, 1, 0]
    assert shared_classes(["handbag", "purse"], {"handbag": ["purse"]}) == [0, 1]  # not every handbag is a purse
    packaged = read_word_lists("packaged")
    assert shared_classes(["tv monitor", "airplane", "tv", "aeroplane"], packaged) == [0, 1, 0, 1]
    assert shared_classes(PASCAL_CLASSES[1:], packaged) == list(range(20))

    corpus = build_corpus([open_split("pascal", voc_tree)], "images")
    image, text = build_image_encoder(config.model.image_encoder), minilm_embedded()
    names, embeddings = corpus.names(), LabelEmbedder(text, ("{}",))(corpus.names())
    aeroplane, bird = names.index("aeroplane"), names.index("bird")
    shared = [aeroplane if number == bird else number for number in range(len(names))]
    model = build_network(config, image, text, len(names))
    source = LiveSource(corpus.splits[0].data, image, config.model.resolution)
    apart = ClosedSetDataset(model, corpus, [source], no_progress).counts
    joined = ClosedSetDataset(model, corpus, [source], no_progress, shared).counts
    assert apart[:, bird].sum() > 0
    assert joined[:, bird].sum() == 0
    assert torch.equal(joined[:, aeroplane], apart[:, aeroplane] + apart[:, bird])
    fit_closed_set_head(model, corpus, [source], embeddings, config, shared=shared)
    assert model.similarity is not None
    head = model.similarity.closed_set
    assert head is not None
    assert head.known[aeroplane]
    assert not head.known[bird]
    cosines = embeddings[[aeroplane, bird]] @ head.names[aeroplane]
    torch.testing.assert_close(cosines[0], cosines[1])
    assert cosines[0] > embeddings[aeroplane] @ embeddings[bird]


def test_every_view_of_an_image_is_drawn_with_its_own_mask(voc_tree: Path, config: TrainConfig) -> None:
    corpus = build_corpus([open_split("pascal", voc_tree)], "images")
    image, text = build_image_encoder(config.model.image_encoder), minilm_embedded()
    model = build_network(config, image, text, len(corpus.names()))
    source = LiveSource(corpus.splits[0].data, image, config.model.resolution)
    dataset = ClosedSetDataset(model, corpus, [source], no_progress)
    assert {view.view for views in draw_views(dataset, dataset.samples, 2, 20, 0) for view in views} == {0}
    source.views = 3  # as a cache has them
    drawn = [view for views in draw_views(dataset, dataset.samples, 2, 20, 0) for view in views]
    assert {view.view for view in drawn} == {0, 1, 2}
    assert {view.flipped for view in drawn} == {False, True}
    first = drawn[: len(dataset.samples)]
    assert len({view.sample.item.id for view in first}) == len(first), "every image once before any comes again"
    sample = dataset.samples[0]
    for view in (0, 2):
        tokens, masks = source.batch([(sample.item, view)])
        batch = dataset.read([SampleView(sample, view), SampleView(sample, view, flipped=True)])
        grid = tokens.shape[2], tokens.shape[3]
        rows = batch.labels.unflatten(1, grid)
        expected = torch.from_numpy(dataset.tables[0][resize_mask(masks[0], grid)])
        assert torch.equal(rows[0], expected)
        assert torch.equal(rows[1], rows[0].flip(-1))
        visual = batch.features[..., : model.config.image_dim].mT.unflatten(2, grid)
        torch.testing.assert_close(visual[0], tokens[0, : model.config.image_dim], atol=1e-3, rtol=1e-2)
        torch.testing.assert_close(visual[1], visual[0].flip(-1))


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_a_run_saves_its_head_and_initialises_others(
    voc_tree: Path,
    config: TrainConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def run(name: str, fold: int | None, initial: Path | None = None) -> Path:
        train(
            [open_split("pascal", voc_tree, fold)],
            config,
            RunConfig(tmp_path / name, device="cpu", init_from=initial),
        )
        return tmp_path / name / "last.safetensors"

    def never(*_: object) -> None:
        raise AssertionError("fitted again")

    first = run("first", None)
    absent = "15 of 20 names: boat, bottle, bus, car, chair, cow, dining table, horse and 7 more"
    assert absent in capsys.readouterr().err
    with monkeypatch.context() as patched:
        patched.setattr(closed_set, "fit_closed_set", never)
        whole = RunConfig(tmp_path / "first", resume=True, device="cpu")
        assert train([open_split("pascal", voc_tree)], config, whole).signal == 0
    state, card = load_model(first)[0].state_dict(), load_model(first)[1]
    assert card.config.closed_set_classes == 20
    assert not any("cross" in name for name in state)
    second, about = load_model(run("second", 0, first))  # fewer classes of its own
    assert (about.config.closed_set_classes, about.config.previous_closed_sets) == (15, (20,))
    third, about = load_model(run("third", 1, tmp_path / "second" / "last.safetensors"))
    assert (about.config.closed_set_classes, about.config.previous_closed_sets) == (15, (20, 15))
    for stored in (second.state_dict(), third.state_dict()):
        assert torch.equal(stored["similarity.closed_set.names"][:20], state["similarity.closed_set.names"])
        networks = [name for name in state if "closed_set.full." in name]
        assert networks
        for name in networks:
            assert torch.equal(stored[name.replace("full.", "previous.0.")], state[name])
    assert set(card.training["images"]) <= set(about.training["images"])
    assert set(card.training["classes"]) == set(about.training["classes"])


def test_the_best_threshold_on_held_out_images_is_saved(
    voc_tree: Path, tiny: Callable[..., TrainConfig], tmp_path: Path
) -> None:
    split = open_split("pascal", voc_tree)
    train(
        [split],
        tiny(val_images=1, logit_bias=True),
        RunConfig(tmp_path, device="cpu", checkpoint_minutes=60),
    )
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    best = max((line for line in lines if "threshold" in line), key=lambda line: line["val_miou"])
    assert load_model(tmp_path / "best.safetensors")[1].threshold == best["threshold"]
    assert best["threshold"] in THRESHOLDS


def test_a_threshold_is_a_probability() -> None:
    labels = torch.tensor([[[1, 1, 0, -1]]], dtype=torch.int16)
    padded = torch.zeros(1, 1, dtype=torch.bool)
    batch = Batch(
        torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 2), labels, torch.tensor([[2]]), padded, torch.tensor([-1]),
    )  # fmt: skip
    logits = torch.logit(torch.tensor([[[[0.65, 0.3, 0.3, 0.9]]]]))
    right = {t: iou_counts(logits, batch, 3, t)[2].tolist() for t in (0.2, 0.5, 0.7)}
    assert right == {0.2: [2, 3, 2], 0.5: [1, 1, 2], 0.7: [0, 0, 2]}


@pytest.mark.slow
@pytest.mark.usefixtures("few_steps")
def test_folds_have_no_closed_set_head_by_default(voc_tree: Path, clip_folder: Path, tmp_path: Path) -> None:
    command = [
        "train",
        "pascal",
        "--root",
        str(voc_tree),
        "--image-encoder",
        f"clip-vit-b16@{clip_folder}+effnet-lite2",
    ]
    command += [
        "--resolution",
        "64",
        "--steps",
        "1",
        "--batch-size",
        "2",
        "--closed-set-epochs",
        "1",
        "--cache",
        str(tmp_path / "cache"),
    ]
    for name, fold, num_classes in (
        ("fold", ["--fold", "0"], 0),
        ("own", ["--fold", "0", "--closed-set-head"], 15),
        ("all", [], 20),
    ):
        assert main([*command, *fold, "--out", str(tmp_path / name)]) == 0
        assert load_model(tmp_path / name / "last.safetensors")[1].config.closed_set_classes == num_classes
