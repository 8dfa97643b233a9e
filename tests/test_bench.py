"""The benchmark: sections that are quick, small sizes of those that are not, tables, public checkouts."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from mssync import bench as module
from mssync.bench import Bench, Figure, Reference, as_json, as_markdown, in_turns, run
from mssync.cli import app
from mssync.errors import InputError


@pytest.fixture
def bench() -> Bench:
    return Bench(np.zeros((64, 64, 3), np.uint8), np.ones(1000, np.float32))


def test_turns_are_medians_a_unit_without_the_first() -> None:
    order = []

    def work(name: str, units: int):
        def do() -> int:
            order.append(name)
            time.sleep(0.05 if len(order) <= 2 else 0.01)
            return units

        return do

    found = in_turns({"a": work("a", 1), "b": work("b", 10)}, rounds=3)
    assert order == ["a", "b"] * 4
    assert 0.009 < found["a"] < 0.04
    assert 0.0009 < found["b"] < 0.004


def test_unknown_section(bench) -> None:
    with pytest.raises(InputError, match="there is no section 'speed'; choose from startup"):
        list(run(bench, ["speed"]))


def test_startup_is_measured(bench, monkeypatch) -> None:
    monkeypatch.setattr(module, "in_turns", lambda work: {name: do() * 0.1 for name, do in work.items()})
    assert [figure.value for figure in run(bench, ["startup"])] == [0.1, 0.1]


def test_generation_and_its_flatness(bench, monkeypatch) -> None:
    small = module._generator("compact")
    monkeypatch.setattr(module, "_generator", lambda name: small)
    for name, value in {"LENGTHS": (6,), "LONG": 90, "STRETCH": 10}.items():
        monkeypatch.setattr(module, name, value)
    figures = {figure.name: figure.value for figure in run(bench, ["generation"])}
    assert figures["compact, 6 frames"] > 1
    assert 0.1 < figures["compact: a frame from 80 on over one from 50 on"] < 10


def test_multiply_adds_and_bytes_are_counted() -> None:
    a, b = torch.ones(30, 20), torch.ones(20, 10)
    products, moved = module._counted(lambda: len(a @ b), 1)
    assert products == 30 * 20 * 10
    assert moved == 4 * (30 * 20 + 20 * 10 + 30 * 10)


def test_delays() -> None:
    figures = list(module._delays("two", [[(0, 0.2), (1, 0.2), (2, 0.2), (3, 0.2)], [(1, 0.4), (3, 0.4)]]))
    assert figures[0][1] == pytest.approx(12.5)
    assert figures[1][1] == pytest.approx(200)
    assert 390 < figures[2][1] <= 400


def test_tables() -> None:
    figures = [Figure("live", "delay", 212.4, "ms", "< 300", "a note"), Figure("limits", "ratio", 2.345, "times")]
    assert json.loads(json.dumps(as_json(figures)))["figures"][0]["value"] == 212.4
    table = as_markdown(figures).splitlines()
    assert table[-2] == "| live | delay | 212 ms | < 300 | a note |"
    assert table[-1] == "| limits | ratio | 2.35 times |  |  |"


def test_a_public_checkout_takes_part(tmp_path: Path, bench) -> None:
    """A stand-in for one, with the names and shapes of the public code."""
    with pytest.raises(InputError, match="no checkout of MS-Sync"):
        Reference(tmp_path)
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "networks.py").write_text(
        "import torch\n"
        "class DynamicalModel(torch.nn.Module):\n"
        "    def __init__(self, config):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(10 * config.data_dim, 10 * config.data_dim)\n"
        "    def forward(self, x, audio):\n"
        "        mask = torch.ones(1).cuda()\n"
        "        out = self.layer(x.flatten(2)).unflatten(2, (10, -1)) * mask\n"
        "        return out, out[:, -1:].expand(-1, audio.shape[1] // 4 - x.shape[1], -1, -1)\n"
    )
    reference = Reference(tmp_path)
    assert (reference.fomm, reference.generator) == (None, "nets.networks")
    assert reference.generation(12)() == 12
    assert reference.training(4, 2)() == 1
    (tmp_path / "nets" / "networks.py").write_text("import nothing_of_that_name\n")


def test_command(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(module.SECTIONS, "startup", lambda _: iter([("import", 0.1, "s", "< 0.3")]))
    pytest.importorskip("skimage")
    out, table = tmp_path / "bench.json", tmp_path / "bench.md"
    result = CliRunner().invoke(app, ["bench", "startup", "--json", str(out), "--markdown", str(table)])
    assert result.exit_code == 0, result.output
    assert "import: 0.1 s  < 0.3" in result.output
    assert json.loads(out.read_text(encoding="utf-8"))["figures"][0]["name"] == "import"
    assert "| startup | import | 0.1 s | < 0.3 |  |" in table.read_text(encoding="utf-8")
    assert CliRunner().invoke(app, ["bench", "nonsense"]).exit_code == 2
