"""The documentation: the site builds without a dead link, the notebook runs as written."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from newcomer import Block, blocks

ROOT = Path(__file__).parents[1]
MINUTES = 5  # more than enough for either, on a busy machine too


@pytest.mark.slow
def test_the_site_builds_and_every_link_leads_somewhere(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60 * MINUTES)
    assert result.returncode == 0, result.stderr
    assert "animate" in (tmp_path / "api" / "index.html").read_text(encoding="utf-8")


def test_what_the_pages_use_is_in_the_reference():
    """Every name that a page imports from mssync."""
    reference = re.findall(r"^::: ([\w.]+)$", (ROOT / "docs" / "api.md").read_text(encoding="utf-8"), re.MULTILINE)
    used = set()
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md")):
        text = page.read_text(encoding="utf-8")
        for module, names in re.findall(r"^ *from (mssync[\w.]*) import (.+)$", text, re.MULTILINE):
            used |= {f"{module}.{name.strip()}" for name in names.split(",")}
        used |= set(re.findall(r"\bmssync(?:\.[a-z]\w*)+\.\w+(?=\()", text))
    used -= {"mssync.load"}  # an alias of mssync.animate.load
    assert used
    assert not [name for name in sorted(used) if name not in reference and name.rpartition(".")[0] not in reference]


@pytest.mark.slow
def test_the_notebook_runs_as_written(tmp_path):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(ROOT / "docs" / "notebook" / "portrait.ipynb", as_version=4)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    client = nbclient.NotebookClient(
        notebook, timeout=60 * MINUTES, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment)
    printed = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    assert "by MS-Sync" in printed


def test_blocks_are_found_in_order_with_what_they_need():
    page = "text\n```bash\na\n```\n*Needs: a boat.*\n```python\nb\n  c\n```\n"
    page += "```\nno\n```\n*Needs: x.*\n\n```bash\nd\n```\n"
    assert blocks(page, "p.md") == [
        Block("p.md", 2, "bash", "a\n", ""),
        Block("p.md", 6, "python", "b\n  c\n", "a boat"),
        Block("p.md", 15, "bash", "d\n", "x"),
    ]
