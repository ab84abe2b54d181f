"""Tests that the documentation can be built as a site without a warning, and its notebook run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "docs" / "tutorial.ipynb"


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert built.returncode == 0, built.stderr
    # The pages work without internet, because they load nothing from other servers.
    for page in tmp_path.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert 'src="http' not in text, page
        assert "fonts.googleapis" not in text, page
    # Files outside docs/ to which the pages link are copied into the site.
    assert (tmp_path / "repository" / "deploy" / "nginx.conf").is_file()
    assert "InferenceClient" in (tmp_path / "reference.html").read_text(encoding="utf-8")


def test_the_notebook_runs_and_prints_where_it_printed_before(tmp_path: Path) -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    before = [_texts(cell) for cell in notebook.cells]
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    after = [_texts(cell) for cell in notebook.cells]
    # Another processor rounds differently in training, so the printed numbers may differ a little.
    assert [bool(texts) for texts in after] == [bool(texts) for texts in before]
    assert any("answered" in text for texts in after for text in texts)
    assert str(tmp_path) not in NOTEBOOK.read_text(encoding="utf-8")


def _texts(cell: nbformat.NotebookNode) -> list[str]:
    return [output.text for output in cell.get("outputs", []) if output.output_type == "stream"]
