"""The site of `make docs`: a page for every command and every public name, nothing fetched, and no dead link."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import dpl_ray
from dpl_ray.commands.cli import commands
from dpl_ray.commands.help import help_blocks
from tests.documents import ROOT

pytestmark = pytest.mark.slow


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", str(config), "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site, built in strict mode."""
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stdout
    return folder


def text_of(page: Path) -> str:
    return re.sub(r"<[^>]+>", "", page.read_text().replace("<wbr>", ""))


def test_every_command_has_a_page_with_all_that_it_takes(site: Path) -> None:
    for name, command in commands().items():
        text = text_of(site / "commands" / f"{name}.html")
        for wanted in (command.summary, f"dpl-ray {name}", "Exit status: 0 done", *command.example.split()):
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
    assert "Secrets" in text_of(site / "security.html")


def test_no_dependency_has_a_licence_that_would_bind_this_package(site: Path) -> None:
    page = text_of(site / "licences.html")
    assert re.search(r"numpy\s+\d\S+\s+BSD", page)
    assert page.count("says none in its metadata") <= 3
    assert not re.search(r"\bA?GPL", page)
    assert f"[{dpl_ray.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_pages_fetch_nothing(site: Path) -> None:
    fetched = re.compile(r"""<(?:script|img|link|iframe)\b[^>]*\b(?:src|href)=["']?(?:https?:)?//[^>]*>""")
    for page in site.rglob("*.html"):
        assert not fetched.search(page.read_text()), page
    assert not list((site / "_site").glob("*.py"))


def build_page(text: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A site of two pages with the settings of the whole one; `hidden.md` is not in its navigation."""
    (folder / "docs").mkdir()
    (folder / "docs" / "index.md").write_text(f"# Home\n\n{text}\n")
    (folder / "docs" / "hidden.md").write_text("# Hidden\n")
    config = folder / "mkdocs.yml"
    hidden = "" if "hidden.md" in text else "not_in_nav: hidden.md\n"
    config.write_text(f"INHERIT: {ROOT}/mkdocs.yml\nhooks: []\nextra_css: []\nnav: [index.md]\n{hidden}")
    return build(config, folder / "site")


def test_mistakes_end_the_build(tmp_path: Path) -> None:
    built = build_page("[a](nowhere.md) [b](#nothing) [c](../README.md) [d](hidden.md)", tmp_path)
    assert built.returncode == 1
    for message in ("'nowhere.md'", "'#nothing'", "'../README.md'", "hidden.md", "Aborted with 4 warnings"):
        assert message in built.stdout


def test_a_name_that_is_not_there_ends_the_build(tmp_path: Path) -> None:
    built = build_page("::: dpl_ray.nonsense", tmp_path)
    assert built.returncode == 1
    assert "dpl_ray.nonsense could not be found" in built.stdout


def test_what_is_right_is_built(tmp_path: Path) -> None:
    built = build_page("[Here](#home)\n\n::: dpl_ray.load_config", tmp_path)
    assert built.returncode == 0, built.stdout
