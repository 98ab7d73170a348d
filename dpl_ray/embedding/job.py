"""Write the features of every image of a pool, each once, whatever happens on the way."""

from __future__ import annotations

import posixpath
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from rich.console import Console

from dpl_ray.cluster import connect as cluster
from dpl_ray.config.given import read_given
from dpl_ray.config.schema import DataConfig
from dpl_ray.config.section import shown
from dpl_ray.data.features.folder import BACKBONE_FOLDER
from dpl_ray.data.files.kinds import as_text
from dpl_ray.data.files.listing import list_files
from dpl_ray.data.files.location import indexes_in, open_location, would_list
from dpl_ray.data.files.reach import Reach
from dpl_ray.data.formats.rows import list_pool, shards_told
from dpl_ray.data.labeled.classes import check_class_names, find_class_names
from dpl_ray.data.labeled.records import form_of, is_table, list_records
from dpl_ray.data.labels import clean_name, label_indices
from dpl_ray.data.pool.choice import files_named
from dpl_ray.embedding.config import EmbedConfig
from dpl_ray.labeling.fill import check_bad, count_workers, fill, place_of
from dpl_ray.labeling.ledger import Ledger
from dpl_ray.labeling.plan import rows_per_block
from dpl_ray.page.console import Progress, open_console, show
from dpl_ray.page.result import Result
from dpl_ray.store.lock import sole_use


@dataclass(frozen=True, repr=False)
class EmbedResult(Result):
    """The result of `embed`."""

    output: str  # folder that data.train and data.unlabeled of data=features take
    num_rows: int
    num_features: int
    unreadable: dict[str, int]  # reason -> images
    bad: str | None  # list of the unreadable
    digest: str  # of the network: features of one digest belong together

    def _facts(self) -> dict[str, str | None]:
        return {
            "output": self.output,
            "images": f"{self.num_rows:,}",
            "features": f"{self.num_features:,}",
            "unreadable": f"{sum(self.unreadable.values()):,}",
        }


def embed(
    config: EmbedConfig | Sequence[str] = (), *, console: Console | bool | None = None, **keywords: Any
) -> EmbedResult:
    """Write the features of every image of a pool once. An output that was begun goes on.

    Args:
        config: a configuration, or overrides as on the command line.
        console: where progress is shown, as in `fit`.
        keywords: fields, as `pool="photos"`, or sections, as `model={"architecture": "resnet18"}`.

    Raises:
        ValueError: a field, the network, the pool, the output or the resources do not fit; before any work.
        TooManyBadError: more of the pool cannot be read than max_bad_fraction allows.
        LedgerError: the parts that were written are not those that were planned.
        WorkersFailedError: a process of Ray failed, or several died over the same images.
    """
    config, console = read_given(config, keywords, EmbedConfig.load, EmbedConfig), open_console(console)
    with indexes_in(config.output):
        location = replace(open_location("pool", config.pool), reach=Reach.of(_data(config, "parquet")))
    if config.scale.num_workers != 0:
        for field in ("pool", "output"):
            cluster.check_shared(config.scale.with_workers(1), field, getattr(config, field))
    labels, class_names = _labels(config) if config.labelled else ({}, None)
    from dpl_ray.embedding.backbone import open_backbone, save_backbone
    from dpl_ray.embedding.blocks import BlockEmbedder

    model, spec, settings = open_backbone(config)
    spec = replace(spec, class_names=class_names)
    identity = {
        "features": asdict(spec),
        "pool": location.names(),
        "image_column": config.image_column,
        "decode": asdict(settings),
        "seed": config.seed,
        "augment": config.augment.model_dump(mode="json"),
    }
    ledger = Ledger(config.output, identity, 1)
    if ledger.storage.scheme == location.scheme and would_list(location, (ledger.storage / "part.parquet").path):
        raise ValueError(
            f"output={config.output}: lies in the pool, which would grow by its own features; take another"
        )
    if isinstance(config.pool, str) and is_table(location.path):
        table = list_records(_data(config, "image_folder"), "pool", config.pool)
        listed = files_named(table, sorted(table.ids))
    else:
        with Progress(console, "shards looked at") as listing, shards_told(listing.update):
            listed = list_pool(location, image_column=config.image_column)
    listed.check_image_column("image_column")
    listed.check_unopened("max_bad_fraction", config.max_bad_fraction)
    num_workers = count_workers(config.scale, len(listed))
    side = spec.image_size
    with sole_use(f"output={config.output}", ledger.books, ledger.storage):
        ledger.begin(listed, rows_per_block(config.rows_per_part, spec.channels * side**2))
        left_out = f"; left out: {as_text(listed.left_out)}" if listed.left_out else ""
        done = f", {ledger.counts.num_rows:,} of them are there" if ledger.resumed else ""
        show(
            console,
            f"{ledger.name}: {len(ledger.plan):,} images{done}; {spec.num_features:,} features and {spec.num_views} "
            f"weak and strong views each, {side}x{side} pixels, by {place_of(config.scale, num_workers)}{left_out}",
        )
        save_backbone(ledger.storage / BACKBONE_FOLDER, model, spec)
        check_bad(ledger, config.max_bad_fraction)
        began, before = time.monotonic(), ledger.counts.num_rows
        if len(ledger.missing):
            embedder = BlockEmbedder(
                ledger.plan, model, spec, config.augment, config.seed, labels, ledger.storage, config.batch_size
            )
            scale = config.scale.with_workers(num_workers)
            fill(ledger, embedder, settings, scale, config.max_bad_fraction, console)
            rate = (ledger.counts.num_rows - before) / (time.monotonic() - began)
            show(console, f"{rate:,.0f} images/s")
        counts, bad = ledger.check(), ledger.write_bad()
    if counts.unreadable:
        without = ", ".join(f"{number:,} {reason}" for reason, number in counts.unreadable.items())
        show(console, f"without features: {without}")
    return EmbedResult(
        str(ledger.storage),
        counts.num_rows,
        spec.num_features,
        counts.unreadable,
        str(bad) if bad else None,
        spec.digest,
    )


def _labels(config: EmbedConfig) -> tuple[dict[str, str], tuple[str, ...]]:
    """Sample id -> class name of those that have one, and the names in the order of their indices."""
    if not isinstance(config.pool, str):
        return _folder_labels(config.pool)
    location = open_location("pool", config.pool)
    data = _data(config, form_of(list_files(location)))
    records = list_records(data, "pool", config.pool)
    names = find_class_names(data, records)
    targets = label_indices(records.labels, names).tolist()
    return {
        sample_id: names[target] for sample_id, target in zip(records.ids, targets, strict=True) if target >= 0
    }, names


def _data(config: EmbedConfig, name: Any) -> DataConfig:
    return DataConfig(
        name=name,
        train=config.pool if isinstance(config.pool, str) else None,
        image_column=config.image_column,
        label_column=config.label_column,
        allow_outside=config.allow_outside,
        allowed_hosts=config.allowed_hosts,
    )


def _folder_labels(folders: Sequence[str]) -> tuple[dict[str, str], tuple[str, ...]]:
    """The same of several folders, each of which is a class and has its name."""
    labels: dict[str, str] = {}
    for folder in folders:
        location = open_location("pool", folder)
        name = clean_name(posixpath.basename(location.path))
        labels |= {location.name(path): name for path in list_files(location).paths.to_pylist()}
    names = tuple(sorted(set(labels.values())))
    check_class_names(names, f"pool={shown(list(folders))}")
    return labels, names
