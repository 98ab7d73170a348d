"""The site of `make docs`: a page for every command and every public name, nothing fetched, and no dead link."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dpl_ray
from pipelines.cli import commands, help_blocks
from tests.documents import ROOT

pytestmark = pytest.mark.slow


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built in strict mode."""
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    return folder


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text().replace("<wbr>", ""))


def test_every_command_has_a_page_with_all_that_it_takes(site: Path) -> None:
    for name, command in commands().items():
        text = text_of(site / "commands" / f"{name}.html")
        for wanted in (command.summary, f"pipelines.{name}", "Exit status: 0 done", *command.example.split()):
            assert wanted.replace("'", "&#39;") in text or wanted in text, (name, wanted)
        for rows in help_blocks(command).values():
            for field, kind, default, _ in rows:
                assert (field if kind else f"{field}={default}") in text, (name, field)


def test_every_public_name_has_a_page(site: Path) -> None:
    for name in dpl_ray.__all__:
        if name != "__version__":
            summary = (getattr(dpl_ray, name).__doc__ or "").splitlines()[0]
            words = re.sub(r"\W+", " ", summary.replace("`", "")).split()
            assert " ".join(words) in " ".join(re.sub(r"\W+", " ", text_of(site / "python" / f"{name}.html")).split())
    for page, wanted in {"Config": "data.pool.mode", "FitResult": "checkpoint", "Predictor": "predict"}.items():
        assert wanted in text_of(site / "python" / f"{page}.html")


def test_every_document_has_a_page_that_can_be_found(site: Path) -> None:
    home = (site / "index.html").read_text()
    for document in (ROOT / "docs").rglob("*.md"):
        page = document.relative_to(ROOT / "docs").with_suffix(".html")
        assert (site / page).exists()
        assert f'href="{page}"' in home, page
    assert "0.1.0" in text_of(site / "changes.html")
    assert f"[{dpl_ray.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_pages_fetch_nothing(site: Path) -> None:
    fetched = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
    for page in site.rglob("*.html"):
        assert not fetched.search(page.read_text()), page
    assert not list((site / "_site").glob("*.py"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[here](nowhere.md)", "nowhere.md"),
        ("[here](other.md#nowhere)", "nowhere"),
        ("[here](../README.md)", "README.md"),
        ("::: dpl_ray.nonsense", "dpl_ray.nonsense"),
        ("", 'not included in the "nav"'),
    ],
)
def test_a_mistake_ends_the_build(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text(f"# Home\n\n[Other](other.md)\n\n{text}\n")
    (tmp_path / "docs" / "other.md").write_text("# Other\n")
    nav = "[index.md, other.md]" if text else "[index.md]"
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT}/mkdocs.yml\nhooks: []\nextra_css: []\ndocs_dir: docs\nnav: {nav}\n")
    built = build(config, tmp_path / "site")
    assert built.returncode == 1, built.stderr
    assert message in built.stderr


def test_what_is_right_is_built(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "index.md").write_text("# Home\n\n[Here](#home)\n\n::: dpl_ray.fit\n")
    config = tmp_path / "mkdocs.yml"
    config.write_text(f"INHERIT: {ROOT}/mkdocs.yml\nhooks: []\nextra_css: []\ndocs_dir: docs\nnav: [index.md]\n")
    built = build(config, tmp_path / "site")
    assert built.returncode == 0, built.stderr
