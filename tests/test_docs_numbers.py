"""Numbers in README.md and docs/: what was measured stands in generated tables, and bounds are those of the code."""

from __future__ import annotations

import io
import math
import pkgutil
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.results import BLOCK
from tests.documents import ROOT, documents

NUMBER = r"(?:\d[\d,.]*|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|thirteen|fourteen|fifteen)"
#: How a sentence ranks what was measured, or says how far one is from the other.
RANK = re.compile(
    rf"""\b{NUMBER}\s(?:of|in)\s(?:the\s|all\s)*{NUMBER}\s(?:\w+\s)?
         (?:settings|subsets|seeds|cases|data\ssets|policies|draws)\b
    | \b(?:first|second|third|best|worst|highest|lowest|most\saccurate|fastest|slowest)
         \s(?:of|in)\s(?:the\s|all\s)*{NUMBER}\b
    | \b{NUMBER}\stimes\s(?:as\s(?:fast|long|slow|accurate|much\s(?:time|memory))|faster|slower|longer|better)\b
    | \btwice\sas\s(?:fast|slow|accurate)\b
    | \b(?:tenth|fifth|quarter|third|half)\s(?:faster|slower|longer|higher|lower|better|worse|more\saccurate)\b
    | (?<!one\simage\sis\s)\b\d[\d,.]*\s(?:points?|images/s|samples/s)\b""",
    re.VERBOSE | re.IGNORECASE,
)


def prose(text: str) -> str:
    """A document without its code and its generated tables, a paragraph in each line."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "`…`", BLOCK.sub("", text), flags=re.DOTALL)
    return re.sub(r"(?<!\n)\n(?![\n|#>-])\s*", " ", text)


def ranks(text: str) -> list[str]:
    return [text[max(0, found.start() - 40) : found.end()] for found in RANK.finditer(text)]


def comments(path: Path) -> Iterator[str]:
    """Comments and docstrings of a file, each without its line breaks."""
    lines: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
        if token.type == tokenize.COMMENT:
            lines.append(token.string.lstrip("#: "))
        elif token.type == tokenize.STRING and token.string.startswith('"""'):
            yield " ".join(token.string.split())
        elif token.type != tokenize.NL and lines:
            yield " ".join(lines)
            lines = []


def test_no_sentence_ranks_what_was_measured() -> None:
    assert [(page.name, rank) for page in documents() for rank in ranks(prose(page.text))] == []


def test_no_comment_says_what_was_measured() -> None:
    files = sorted((ROOT / "dpl_ray").rglob("*.py"))
    assert [(path.name, rank) for path in files for text in comments(path) for rank in ranks(text)] == []


@pytest.mark.parametrize(
    "sentence",
    [
        "`dpl` is above `supervised` in 11 of 14 settings.",
        "It helps on two of the three subsets.",
        "The rate is the best of four.",
        "Here it is second of ten.",
        "It takes some 15 times as long.",
        "Streams are three times slower.",
        "A tenth faster.",
        "It is 2.1 points behind, and reads\n6,000 images/s.",
    ],
)
def test_a_rank_is_found(sentence: str) -> None:
    assert ranks(prose(f"# Page\n\n{sentence}\n"))


def test_generated_ranks_and_arithmetic_are_no_mistakes() -> None:
    table = "<!-- results: study -->\n\nAbove in 11 of 14 settings.\n\n<!-- /results -->\n"
    assert (
        ranks(prose(f"{table}With 20 of them, one image is\n5 points. `best of four`, ten times as many images.")) == []
    )


@pytest.mark.parametrize("name", ["RESULTS.md", "performance.md", "scale.md"])
def test_numbers_that_were_measured_stand_in_tables_alone(name: str) -> None:
    """Outside of code and of the tables of results no page has a number with a decimal point, a rate or a share."""
    text = prose((ROOT / "docs" / name).read_text())
    assert not re.findall(r".{,80}(?:(?<![\d.])\d+\.\d+(?!\.?\d)|\d %|\d images/s|\d points?\b|\d times\b)", text)


#: Page, its words with {} for the number, the constant that this is, and how many of it make one.
BOUNDS = [
    ("certificate", "some {} images from", "dpl_ray.labeling.held_out:NUM_SAMPLE", 1),
    ("certificate", "images from {} places", "dpl_ray.labeling.held_out:NUM_BLOCKS", 1),
    ("certificate", "each at the level {}", "dpl_ray.labeling.certificate_page:LEVEL", 1),
    ("check", "at most {} of 64 bits", "dpl_ray.checking.copies:MAX_BITS", 1),
    ("check", "is at least {}", "dpl_ray.checking.copies:LEAST_CORRELATION", 1),
    ("check", "below {} pixels", "dpl_ray.checking.copies:LEAST_SIDE", 1),
    ("check", "the first {} images", "dpl_ray.checking.copies:MAX_COMPARED", 1),
    ("check", "streamed pool {} ", "dpl_ray.checking.checked:MAX_STREAMED", 1),
    ("configuration", "more than {} % of the time", "dpl_ray.config.schema:CHECKPOINT_SHARE", 0.01),
    ("configuration", "up to {} seconds: a command renews", "dpl_ray.store.lock:SECONDS_TO_RENEW", 1),
    ("configuration", "taken over after {} seconds", "dpl_ray.store.lock:LEASE_SECONDS", 1),
    ("configuration", "at most {}·10¹³", "dpl_ray.jobs.placement:SMALL", 1e13),
    ("data", "files above {} MiB", "dpl_ray.data.files.kinds:MAX_UNNAMED_BYTES", 2**20),
    ("data", "above {} MiB is not read", "dpl_ray.data.formats.tar:MAX_IMAGE_BYTES", 2**20),
    ("evaluation", "in {} bins", "dpl_ray.training.predictions:NUM_BINS", 1),
    ("evaluation", "bootstrap, {} resamples", "dpl_ray.report.intervals:NUM_RESAMPLES", 1),
    ("evaluation", "Without {} wrong images", "dpl_ray.inference.temperature:FEWEST_WRONG", 1),
    ("evaluation", "up to {} classes", "dpl_ray.jobs.evaluate:MAX_IN_MATRIX", 1),
    ("features", "{} rows of the pool", "dpl_ray.training.loop:STANDARDIZED_ROWS", 1),
    ("labels", "up to {} blocks of image files", "dpl_ray.labeling.plan:BLOCKS_PER_INPUT", 1),
    ("labels", "is cut into {} blocks", "dpl_ray.labeling.plan:MANY_BLOCKS", 1),
    ("labels", "as long as each has {} rows", "dpl_ray.labeling.plan:LEAST_ROWS", 1),
    ("labels", "{} MiB of decoded pixels", "dpl_ray.labeling.plan:MAX_DECODED_BYTES", 2**20),
    ("labels", "from a confidence of {} on", "dpl_ray.inference.label_batch:SUPERVISED_THRESHOLD", 1),
    ("labels", "the first {} unreadable", "dpl_ray.labeling.ledger:MAX_LISTED", 1),
    ("labels", "with {} CPU each", "dpl_ray.labeling.on_ray:CPUS_PER_TASK", 1),
    ("labels", "{} images is labelled in this process", "dpl_ray.labeling.config:SMALL_POOL", 1),
    ("labels", "At most {} blocks of", "dpl_ray.labeling.on_ray:BLOCKS_PER_ACTOR", 1),
    ("labels", "of at most {} MiB of decoded images", "dpl_ray.labeling.plan:MAX_DECODED_BYTES", 2**20),
    ("method", "with T = {}.", "dpl_ray.algorithm.open_set:TEMPERATURE", 1),
    ("method", "with v = max({}, 1", "dpl_ray.algorithm.dpl:LEAST_ALIGNMENT", 1),
    ("method", "t / {}), where t is the share", "dpl_ray.algorithm.dpl:NO_ALIGNMENT_AFTER", 1),
    ("method", "at least {} / C", "dpl_ray.algorithm.dpl:LEAST_MASS", 1),
    ("metrics", "confidence below {} /", "dpl_ray.training.metrics:HIGH_ENTROPY_CONFIDENCE", 1),
    ("performance", "A call ends within {} minutes", "benchmarks.gpu:CALL_SECONDS", 60),
    ("predict", "end at {} or below", "dpl_ray.data.images.convert:DARK", 1),
    ("report", "at most {} % of the time", "dpl_ray.report.live:SHARE", 0.01),
    ("report", "at most {} images, and", "dpl_ray.report.pool:MAX_IMAGES", 1),
    ("report", "more than {} seconds", "dpl_ray.report.pool:MAX_SECONDS", 1),
    ("scale", "at least {} rows", "dpl_ray.data.formats.rows:ROWS_PER_SPAN", 1),
    ("scale", "for up to {} folders", "dpl_ray.data.files.walk:FOLDERS_APART", 1),
    ("search", "the best {} trials", "dpl_ray.studies.tuning.table:MAX_ROWS", 1),
    ("self_training", "more than {} times", "dpl_ray.checking.settings:MOST_TIMES", 1),
    ("suggestions", "to their worth: {}, or", "dpl_ray.reviewing.suggest:MIN_CANDIDATES", 1),
    ("evaluation", "what {} labelled images", "benchmarks.calibration:NUM_LABELS", 1),
    ("self_training", "the test split {},", "benchmarks.self_training:NUM_TEST", 1),
    ("suggestions", "An oracle answers {} images", "benchmarks.suggest:ANSWERS", 1),
    ("RESULTS", "on {} labelled images of the test split", "benchmarks.calibration:NUM_LABELS", 1),
    ("RESULTS", "the first {} test images", "benchmarks.ways:TEST_IMAGES", 1),
]


@pytest.mark.parametrize(("page", "words", "name", "unit"), BOUNDS)
def test_a_bound_that_a_page_names_is_that_of_the_code(page: str, words: str, name: str, unit: float) -> None:
    value = pkgutil.resolve_name(name) / unit
    shown = f"{value:,.0f}" if math.isclose(value, round(value)) else f"{value:g}"
    text = " ".join((ROOT / "docs" / f"{page}.md").read_text().split())
    assert words.format(shown) in text, re.findall(words.replace("{}", r"[\d.,]+"), text)
