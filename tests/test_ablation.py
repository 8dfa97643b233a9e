"""Ablations: their files differ in what they say, and both commands run end to end on tiny data."""

from __future__ import annotations

import csv
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("lightning", reason="needs mssync[train]")
pytest.importorskip("scipy", reason="needs mssync[eval]")

from typer.testing import CliRunner

from mssync.cli import app
from mssync.config import Config, load_config
from mssync.data import shards
from mssync.data.clips import Entry, write_index
from mssync.errors import InputError
from mssync.syncer import Syncer
from mssync.training.ablation import FULL, OTHERS, TABLE4
from mssync.weights import save_model

SMALL = [
    "generator.width=16", "generator.heads=2", "generator.layers=1", "generator.feed_forward=16",
    "generator.audio_width=8", "generator.branch_hidden=8", "discriminator.frame_hidden=8",
    "discriminator.sequence_hidden=8", "generator_training.batch=2",
]  # fmt: skip


def changed(name: str) -> dict[str, object]:
    """Keys in which a variant differs from the one that has the losses of the paper."""
    have, base = (asdict(load_config(n)) for n in (f"ablations/{name}", f"ablations/{FULL}"))
    return {
        f"{section}.{key}": value
        for section, keys in have.items()
        for key, value in keys.items()
        if value != base[section][key]
    }


def test_every_variant_differs_in_what_its_name_says() -> None:
    assert changed(FULL) == {}
    assert changed("rec1_adv0") == {"generator_training.lambda_adv": 0.0}
    assert changed("rec0.01_adv1") == {"generator_training.lambda_rec": 0.01, "generator_training.lambda_adv": 1.0}
    assert changed("single_scale") == {"generator_training.sync_levels": 1}
    assert changed("no_sync") == {"generator_training.lambda_av": 0.0}
    assert changed("no_masks") == {"generator.soft_masks": False}
    assert changed("mean_levels") == {"generator_training.sync_reduction": "mean"}
    assert len({*TABLE4, *OTHERS}) == 9


def test_a_base_is_merged_and_a_circle_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"base: {tmp_path / 'b.yaml'}\ngenerator:\n  width: 8\n")
    (tmp_path / "b.yaml").write_text("base: compact\ngenerator:\n  width: 16\n  layers: 1\n")
    loaded: Config = load_config(tmp_path / "a.yaml")
    assert (loaded.generator.width, loaded.generator.layers, loaded.syncer.width) == (8, 1, 160)
    (tmp_path / "b.yaml").write_text(f"base: {tmp_path / 'a.yaml'}\n")
    with pytest.raises(InputError, match="its own base"):
        load_config(tmp_path / "a.yaml")
    (tmp_path / "b.yaml").write_text("generatr: {}\n")
    with pytest.raises(InputError, match=r"b\.yaml: there is no key generatr; the nearest is generator"):
        load_config(tmp_path / "a.yaml")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A prepared folder of random motion, and syncers of its size."""
    folder = tmp_path / "data"
    (folder / "motion").mkdir(parents=True)
    entries, rng = [], np.random.default_rng(0)
    for split in ("train", "val"):
        shard = f"{split}-000000.tar"
        with shards.create(folder / "motion" / shard) as archive:
            for n in range(3):
                motion = rng.normal(size=(80, 10, 6)).astype(np.float32)
                arrays = {
                    "motion": motion, "mirrored": motion, "audio": rng.normal(size=(320, 26)).astype(np.float32),
                    "made_by": np.array("space logfbank"),
                }  # fmt: skip
                name = f"{split}{n}"
                shards.add_bytes(archive, f"{name}.motion.npz", shards.npz(**arrays))
                entries.append(Entry(name, split, name, "random", 80, False, "", shard))
        with shards.create(folder / shard):
            pass
    write_index(folder, entries)
    torch.manual_seed(0)
    for level in (1, 2, 3, 4):
        sizes = {"motion_dim": 60, "width": 8, "embedding": 8}
        save_model(folder / f"syncer{level}.safetensors", Syncer(**sizes), "syncer", sizes)
    return folder


@pytest.mark.slow
def test_both_commands_run_and_go_on(data: Path, tmp_path: Path) -> None:
    common = ["--data", str(data), "--syncers", str(data)]
    table, figure = tmp_path / "table4.csv", tmp_path / "fig6.csv"
    arguments = ["reproduce", "table4", *common, "--run", str(tmp_path / "t"), "-o", str(table), "--steps", "2"]
    result = CliRunner().invoke(app, [*arguments, "--variant", FULL, "--variant", "no_masks", *SMALL])
    assert result.exit_code == 0, result.output
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["variant"] for row in rows] == [FULL, "no_masks"]
    assert {"offset_200", "confidence_1600", "score_400", "real_distance"} <= set(rows[0])
    assert table.with_suffix(".png").is_file()

    arguments = ["reproduce", "fig6", *common, "--run", str(tmp_path / "f"), "-o", str(figure), "--every", "1"]
    for steps, measurements in (("1", 2), ("2", 4)):
        result = CliRunner().invoke(app, [*arguments, "--steps", steps, *SMALL])
        assert result.exit_code == 0, result.output
        with figure.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == measurements
    assert [row["steps"] for row in rows] == ["1", "1", "2", "2"]


def test_eval_sync_prints_every_system(data: Path, tmp_path: Path) -> None:
    trained = tmp_path / "t" / FULL / "generator.safetensors"
    arguments = ["reproduce", "table4", "--data", str(data), "--syncers", str(data), "--run", str(tmp_path / "t")]
    arguments += ["-o", str(tmp_path / "table.csv"), "--steps", "1", "--variant", FULL, *SMALL]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    output = tmp_path / "sync.json"
    arguments = ["eval", "sync", "--data", str(data), "--split", "val", "--model", f"ours={trained}"]
    wide = CliRunner(env={"COLUMNS": "200"})
    result = wide.invoke(app, [*arguments, "--syncers", str(data), "--json", str(output)])
    assert result.exit_code == 0, result.output
    for system in ("real", "other sound", "still", "ours"):
        assert system in result.output
    assert output.is_file()
