"""quickstart/results.py: predictions of what has no label."""

from __future__ import annotations

import csv
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from dpl_ray.quickstart.results import predict
from dpl_ray.store.storage import Storage
from tests.builders import save_labeler, tiny_config
from tests.labeling.jobs import png, write_parquet


def test_rows_of_parquet_files_are_predicted(tmp_path: Path) -> None:
    labels = ["ant", None, "bee"]
    pq.write_table(pa.table({"image": [png(place) for place in range(3)], "label": labels}), tmp_path / "train.parquet")
    write_parquet(tmp_path / "pool.parquet", range(5, 9))
    places = {"name": "parquet", "train": f"{tmp_path}/train.parquet", "unlabeled": f"{tmp_path}/pool.parquet"}
    config = tiny_config(data=places | {"image_size": 8})
    checkpoint = Storage(save_labeler(tmp_path / "model", config, ("ant", "bee"), 3, 8))
    file = predict(config, config.data, checkpoint, Storage(str(tmp_path)), Console(quiet=True))
    rows = list(csv.DictReader(Path(file).read_text().splitlines()))
    assert [row["path"] for row in rows] == [
        f"{tmp_path}/train.parquet:1",
        *(f"{tmp_path}/pool.parquet:{n}" for n in range(4)),
    ]
    assert {row["label"] for row in rows} <= {"ant", "bee"}
