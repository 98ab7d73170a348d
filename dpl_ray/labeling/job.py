"""Label a pool: every sample once, whatever happens on the way.

The pool is cut into blocks (dpl_ray/labeling/plan.py), each of which becomes one part of the output; what is written is
kept in books (dpl_ray/labeling/ledger.py), so that a labelling that was interrupted goes on with the blocks that are
missing.
"""

from __future__ import annotations

import hashlib
import json
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray
from rich.console import Console

from dpl_ray.cluster import connect as cluster
from dpl_ray.config.given import read_given
from dpl_ray.config.schema import Config, RunConfig
from dpl_ray.data.features.folder import has_features, list_features
from dpl_ray.data.features.rows import FeatureFiles
from dpl_ray.data.files.kinds import as_text
from dpl_ray.data.files.location import Location, indexes_in, open_location, would_list
from dpl_ray.data.formats.rows import PoolFiles, list_pool, shards_told
from dpl_ray.data.images.convert import DecodeSettings
from dpl_ray.labeling.certificate import Certificate
from dpl_ray.labeling.certificate_page import draw_warnings, make_page, summarize, told
from dpl_ray.labeling.config import LabelConfig
from dpl_ray.labeling.console import label_table
from dpl_ray.labeling.figure import draw_summary
from dpl_ray.labeling.fill import check_bad, count_workers, fill, place_of
from dpl_ray.labeling.held_out import HeldOut, certify_pool, open_held_out
from dpl_ray.labeling.ledger import SUMMARY_NAME, Ledger
from dpl_ray.labeling.parts import NUM_BINS, Counts, histogrammed
from dpl_ray.labeling.plan import rows_per_block
from dpl_ray.page.console import Progress, open_console, show
from dpl_ray.page.result import Result, percent
from dpl_ray.report.usable import known_health, refuse_useless
from dpl_ray.runs.provenance import describe_code
from dpl_ray.store.file_systems import one_line
from dpl_ray.store.lock import sole_use
from dpl_ray.store.records import parse_tree, write_json
from dpl_ray.store.storage import Storage
from dpl_ray.tracking.journal import Journal
from dpl_ray.tracking.server import tracking_uri
from dpl_ray.tracking.tracker import Tracker, recording, start_tracker
from dpl_ray.training.checkpoint_folder import MANIFEST, ModelInfo, feature_spec, load_config_and_info, open_checkpoint

if TYPE_CHECKING:
    from dpl_ray.labeling.blocks import BlockLabeler


@dataclass(frozen=True, repr=False)
class LabelResult(Result):
    """The result of `label_pool`."""

    output: str  # folder of the parts: pyarrow.dataset.dataset(output)
    num_rows: int  # selected + rejected + unreadable
    num_selected: int
    num_rejected: int
    unreadable: dict[str, int]  # reason -> images
    summary: str
    figure: str
    bad: str | None  # list of the unreadable
    certificate: dict[str, Any] | None  # as in the summary, where max_error is given: bound, coverage, num_labels, ...
    page: str | None  # of the certificate
    run_id: str | None  # of MLflow
    tracking_uri: str | None

    def _facts(self) -> dict[str, str | None]:
        return {
            "output": self.output,
            "images": f"{self.num_rows:,}",
            "selected": f"{self.num_selected:,}",
            "rejected": f"{self.num_rejected:,}",
            "unreadable": f"{sum(self.unreadable.values()):,}",
            "wrong at most": percent(self.certificate["bound"]) if self.certificate else None,
        }


@dataclass(frozen=True)
class _Source:
    """The checkpoint that labels, and how its images are read."""

    checkpoint: Storage
    config: Config
    info: ModelInfo
    settings: DecodeSettings
    location: Location  # of the pool
    image_column: str
    max_bad_fraction: float
    temperature: float

    def identity(self) -> dict[str, Any]:
        """What the labels depend on."""
        return {
            "checkpoint": hashlib.sha256((self.checkpoint / MANIFEST).read()).hexdigest()[:16],
            "class_names": list(self.info.class_names),
            "pool": self.location.names(),
            "image_column": self.image_column,
            "decode": asdict(self.settings),
            "policy": self.config.policy.model_dump(),
            "temperature": self.temperature,
        }

    def list_pool(self) -> PoolFiles:
        """The images, or the features of them that the model was trained on."""
        if has_features(self.location):
            return list_features(self.location, feature_spec(self.checkpoint, self.config))
        listed = list_pool(self.location, image_column=self.image_column)
        listed.check_image_column("image_column")
        listed.check_unopened("max_bad_fraction", self.max_bad_fraction)
        return listed

    def bytes_per_row(self, listed: PoolFiles) -> int:
        """In memory."""
        if isinstance(listed, FeatureFiles):
            return 2 * listed.num_features
        assert self.settings.image_size is not None, "it was checked"
        return self.settings.channels * self.settings.image_size**2


def label_pool(
    config: LabelConfig | Sequence[str] = (), *, console: Console | bool | None = None, **keywords: Any
) -> LabelResult:
    """Label every image of a pool with the teacher and the policy of a checkpoint. An output that was begun goes on.

    Args:
        config: a configuration, or overrides as on the command line.
        console: where progress and the table are shown, as in `fit`.
        keywords: fields, as `checkpoint="runs/first"`, or sections, as `scale={"num_workers": 0}`.

    Raises:
        ValueError: a field, the checkpoint, the pool, the output or the resources do not fit, or the model is no better
            than guessing or has collapsed and is not forced; before any work.
        TooManyBadError: more of the pool cannot be read than max_bad_fraction allows.
        LedgerError: the parts that were written are not those that were planned.
        WorkersFailedError: a process of Ray failed, or several died over the same images.
    """
    config, console = read_given(config, keywords, LabelConfig.load, LabelConfig), open_console(console)
    with indexes_in(config.output):
        source = _open_source(config)
    held_out, identity = None, source.identity()
    if config.max_error is not None:
        held_out = open_held_out(config, source.checkpoint, source.config, source.info.class_names)
        fields = config.model_dump(include={"max_error", "confidence", "by_class"})
        identity["certificate"] = fields | {"audit": held_out.digest()}
    uri = tracking_uri(_tracking_config(config, source))
    if config.scale.num_workers != 0:
        for field, path in [*(("pool", path) for path in config.pools), ("output", config.output)]:
            cluster.check_shared(config.scale.with_workers(1), field, path)
    ledger = Ledger(config.output, identity, len(source.info.class_names))
    known = known_health(source.checkpoint)
    refuse_useless(f"checkpoint={config.checkpoint}", known or (), force=config.force)
    same_system = ledger.storage.scheme == source.location.scheme
    if same_system and would_list(source.location, (ledger.storage / "part.parquet").path):
        raise ValueError(f"output={config.output}: lies in the pool, which would grow by its own labels; take another")
    with Progress(console, "shards looked at") as listing, shards_told(listing.update):
        listed = source.list_pool()
    num_workers = count_workers(config.scale, len(listed))
    with sole_use(f"output={config.output}", ledger.books, ledger.storage):
        ledger.begin(listed, rows_per_block(config.rows_per_part, source.bytes_per_row(listed)))
        show(console, _headline(ledger, place_of(config.scale, num_workers), listed, starts_ray=num_workers > 0))
        if known is None:
            show(console, "nothing is known of how good this model is: its folder has no scores")
        certificate = _find_certificate(config, source, ledger, held_out, listed) if held_out else None
        if certificate:
            show(console, told(certificate, source.info.class_names))
        tracker = _start_tracker(config, source, uri, ledger, listed)
        began, done_before = time.monotonic(), ledger.counts.num_rows
        with recording(tracker, console):
            check_bad(ledger, source.max_bad_fraction)
            if len(ledger.missing):
                labeler = _labeler(config, source, ledger, certificate)
                scale = config.scale.with_workers(num_workers)
                fill(ledger, labeler, source.settings, scale, source.max_bad_fraction, console)
            counts = ledger.check()
            seconds = time.monotonic() - began
            num_labeled = counts.num_rows - done_before
            result = _report(source, ledger, counts, listed.left_out, tracker, uri, seconds, num_labeled, certificate)
    console.print(label_table(counts))
    for warning in draw_warnings(certificate, counts) if certificate else ():
        warnings.warn(warning, stacklevel=2)
    return replace(result, run_id=tracker.run_id)


def _open_source(config: LabelConfig) -> _Source:
    checkpoint = open_checkpoint(config.checkpoint)
    trained, info = load_config_and_info(checkpoint)
    settings = info.decode_settings(trained.data)
    if settings.image_size is None:
        height, width = info.image_size
        raise ValueError(
            f"checkpoint={config.checkpoint}: was trained on images of {width}x{height} pixels as they are; a pool "
            "is read by models of square images, which data.image_size=... trains"
        )
    fraction = config.max_bad_fraction
    return _Source(
        checkpoint,
        trained,
        info,
        settings,
        open_location("pool", config.pool),
        config.image_column or trained.data.image_column,
        trained.data.max_bad_fraction if fraction is None else fraction,
        config.temperature,
    )


def _tracking_config(config: LabelConfig, source: _Source) -> Config:
    """The configuration of the checkpoint's run, with the places of this one."""
    run = RunConfig(storage_path=config.run.storage_path)
    return source.config.model_copy(update={"run": run, "tracking": config.tracking})


def _labeler(config: LabelConfig, source: _Source, ledger: Ledger, certificate: Certificate | None) -> BlockLabeler:
    from dpl_ray.labeling.blocks import BlockLabeler
    from dpl_ray.training.checkpoint import load_classifier, load_policy

    return BlockLabeler(
        ledger.plan,
        load_classifier(source.checkpoint)[0],
        load_policy(source.checkpoint),
        source.info.class_names,
        ledger.storage,
        config.batch_size,
        certificate.thresholds if certificate else None,
        source.temperature,
    )


def _find_certificate(
    config: LabelConfig, source: _Source, ledger: Ledger, held_out: HeldOut, listed: PoolFiles
) -> Certificate:
    """That of the start of this labelling: what is new in the pool is selected as what was there."""
    file = ledger.certificate
    if file.exists():
        try:
            return Certificate.from_json(parse_tree(file.read()))
        except (ValueError, LookupError, TypeError) as error:
            raise ledger.lost(file, f"damaged: {one_line(error)}") from None
    if ledger.counts.num_rows:
        raise ledger.lost(file, "missing")
    import torch

    device = torch.device("cuda" if config.scale.use_gpu and torch.cuda.is_available() else "cpu")
    labeler = _labeler(config, source, ledger, None).to(device)

    def score(images: NDArray) -> tuple[Any, Any]:
        found = labeler.score(images)
        return found["pseudo_label"], found["confidence"]

    found = certify_pool(config, held_out, listed, ledger.plan, source.settings, score)
    write_json(file, found)
    return found


def _report(
    source: _Source,
    ledger: Ledger,
    counts: Counts,
    left_out: Mapping[str, int],
    tracker: Tracker,
    uri: str | None,
    seconds: float,
    num_labeled: int,
    certificate: Certificate | None,
) -> LabelResult:
    """Write summary, figure, list of the unreadable and page of the certificate, and record them."""
    names = source.info.class_names
    rate = num_labeled / seconds
    share = counts.num_selected / max(1, counts.num_rows)
    summary: dict[str, Any] = {
        "pool": source.location.names(),
        "checkpoint": str(source.checkpoint),
        "policy": source.config.policy.model_dump(),
        "temperature": source.temperature,
        "class_names": names,
        "num_rows": counts.num_rows,
        "num_selected": counts.num_selected,
        "num_rejected": counts.num_rejected,
        "num_unreadable": counts.num_unreadable,
        "num_foreign": counts.num_foreign,
        "left_out": left_out,
        "selected_share": share,
        "unreadable": counts.unreadable,
        "classes": {
            name: {"selected": selected, "rejected": rejected}
            for name, selected, rejected in zip(names, counts.selected, counts.rejected, strict=True)
        },
        "histograms": {
            column: {
                "edges": [highest * edge / NUM_BINS for edge in range(NUM_BINS + 1)],
                "selected": getattr(counts, f"{column}_selected"),
                "rejected": getattr(counts, f"{column}_rejected"),
            }
            for column, highest in histogrammed(len(names)).items()
            if column != "foreign" or counts.knows_foreign
        },
        "labeled_now": num_labeled,
        "seconds": seconds,
        "images_per_second": rate,
        "code": describe_code(),
    }
    places = ledger.report / SUMMARY_NAME, ledger.report / "summary.png"
    certified = summarize(certificate, counts, names) if certificate else None
    summary["certificate"] = certified
    title = f"{ledger.name}: {counts.num_rows:,} images, {100 * share:.1f} % selected"
    if certified and certified["bound"] is not None:
        title += f", at most {100 * certified['bound']:g} % wrong (confidence {100 * certified['confidence']:g} %)"
    places[1].write(draw_summary(counts, names, title))
    bad = ledger.write_bad()
    page = ledger.report / "certificate.html" if certificate else None
    if certificate and page:
        make_page(certificate, counts, names, ledger.name).write(page)
    places[0].write(json.dumps(summary, indent=1).encode())  # the last: it says that all is done
    metrics = {
        "label/rows": counts.num_rows,
        "label/selected": counts.num_selected,
        "label/rejected": counts.num_rejected,
        "label/unreadable": counts.num_unreadable,
        "label/selected_share": share,
        "label/images_per_second": rate,
    }
    metrics |= {f"label/class/{name}": counts.selected[index] for index, name in enumerate(names)}
    if certified:
        metrics |= {"label/certificate_labels": certified["num_labels"]}
        metrics |= {"label/certified_error": certified["bound"]} if certified["bound"] is not None else {}
    tracker.log({key: float(value) for key, value in metrics.items()}, 0)
    for file in (*places, *filter(None, [bad, page])):
        tracker.log_file(f"{ledger.report.name}/{file.name}")
    return LabelResult(
        output=str(ledger.storage),
        num_rows=counts.num_rows,
        num_selected=counts.num_selected,
        num_rejected=counts.num_rejected,
        unreadable=counts.unreadable,
        summary=str(places[0]),
        figure=str(places[1]),
        bad=str(bad) if bad else None,
        certificate=certified,
        page=str(page) if page else None,
        run_id=None,
        tracking_uri=uri,
    )


def _start_tracker(config: LabelConfig, source: _Source, uri: str | None, ledger: Ledger, listed: PoolFiles) -> Tracker:
    """The MLflow run of this output; the same one when the labelling goes on."""
    params = {key: str(value) for key, value in config.model_dump(mode="json", exclude={"tracking"}).items()}
    journal = Journal(ledger.storage, "_ledger/")
    tags = describe_code() | {"data.fingerprint": listed.fingerprint(), "checkpoint": str(source.checkpoint)}
    return start_tracker(_tracking_config(config, source), uri, journal, name=ledger.name, params=params, tags=tags)


def _headline(ledger: Ledger, place: str, listed: PoolFiles, *, starts_ray: bool) -> str:
    rows, files, missing = len(ledger.plan), len(ledger.plan.pool.paths), len(ledger.missing)
    begins = f"starts with {place}"
    if ledger.resumed:
        new = f", {ledger.num_new:,} new" if ledger.num_new else ""
        begins = f"goes on with {place}, {ledger.counts.num_rows:,} done{new}" if missing else "had finished"
    ray = "\nstarting Ray takes some 10 seconds" if starts_ray and missing else ""
    left_out = f"\nleft out: {as_text(listed.left_out)}" if listed.left_out else ""
    return f"{ledger.name} {begins}: {rows:,} images in {files:,} file{'s' * (files > 1)}{left_out}{ray}"
