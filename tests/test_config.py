"""Configuration: the paper's numbers, overrides, and one clear line for every mistake."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from mssync.config import Config, load_config
from mssync.errors import InputError


def test_paper_numbers():
    config = load_config("paper")
    g, training = config.generator, config.generator_training
    assert (g.layers, g.heads, g.width, g.feed_forward, g.context) == (4, 8, 512, 1024, 40)
    assert (config.syncer.embedding, config.syncer_training.negatives) == (512, [12, 12, 12, 48])
    assert config.syncer_training.temperature == 1.0
    assert (training.lr_generator, training.lr_discriminator, training.betas) == (2e-5, 1e-5, (0.0, 0.999))
    assert (training.iterations, training.decay_iterations, training.decay) == (70_000, 5_000, 0.1)
    assert (training.batch, training.frames, training.sync_reduction) == (50, 40, "sum")
    assert (training.lambda_av, training.lambda_adv, training.lambda_rec) == (8.0, 0.1, 1.0)
    assert not any([g.audio_free_branch, g.final_linear, g.warmup_frames, g.relative_input])


def test_paper_file_spells_out_the_defaults():
    assert load_config("paper") == Config()


def test_the_ablations_have_the_losses_of_the_paper_in_the_sizes_of_compact():
    small, paper = load_config("ablations/rec1_adv0.1"), load_config("paper")
    assert small.generator.width == load_config("compact").generator.width < paper.generator.width
    for key in ("av", "adv", "rec", "lips", "shape"):
        assert getattr(small.generator_training, f"lambda_{key}") == getattr(paper.generator_training, f"lambda_{key}")
    for key in ("betas", "frames", "sync_reduction", "sync_levels", "quiet"):
        assert getattr(small.generator_training, key) == getattr(paper.generator_training, key)


def test_overrides():
    config = load_config("paper", ["generator.width=256", "audio.kind=mfcc", "discriminator.lengths=[4,8]"])
    assert (config.generator.width, config.audio.kind) == (256, "mfcc")
    assert config.discriminator.lengths == [4, 8]
    assert load_config("paper", ["generator_training.max_minutes=2.5"]).generator_training.max_minutes == 2.5


def test_the_last_override_wins():
    assert load_config("paper", ["generator.width=1", "generator.width=2"]).generator.width == 2


def test_result_is_plain_python():
    config = load_config("compact")
    assert isinstance(config, Config)
    assert isinstance(asdict(config)["syncer_training"]["negatives"], list)


def test_own_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("generator:\n  width: 64\n")
    assert load_config(path).generator.width == 64
    assert load_config(str(path)).generator.layers == Config().generator.layers


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("generator.widht=3", "generator.width"),
        ("lamda_av=3", "generator_training.lambda_av"),
        ("discriminator.betas=3", "discriminator.beta"),
        ("generater.width=3", "generator"),
        ("generator.width.x=3", "generator.width"),
    ],
)
def test_unknown_key_names_the_nearest(override, nearest):
    with pytest.raises(InputError, match=f"the nearest is {nearest}"):
        load_config("paper", [override])


@pytest.mark.parametrize(
    "override",
    [
        "generator.width=wide",
        "generator.width=null",
        "generator.width=1.5",
        "generator.audio_free_branch=perhaps",
        "audio.kind=mp3",
        "generator_training.betas=[0]",
        "generator=3",
        "generator.width",
        "generator.width=${nothing}",
        "generator.width=[",
    ],
)
def test_bad_override_is_one_line_that_names_it(override):
    with pytest.raises(InputError) as caught:
        load_config("paper", [override])
    assert override.split("=")[0] in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content",
    [b"generator: {widht: 3}", b"generator: {width: wide}", b"generator: [", b"\xff\xfe\x00", b"- a", b"42"],
)
def test_bad_file_is_one_line_that_names_it(tmp_path, content):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_config(path)
    assert "bad.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_empty_file_is_the_defaults(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("# nothing\n")
    assert load_config(path) == Config()


def test_unknown_name_lists_the_shipped_ones():
    with pytest.raises(InputError, match="compact, face, paper"):
        load_config("papers")
