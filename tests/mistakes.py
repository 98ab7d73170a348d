"""The mistakes that users make: what they type, on which files, and what the one line of the answer must say.

Read by test_mistakes.py, which demands the answers, and by `python -m benchmarks.mistakes`, which times them.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from dpl_ray.config.compose import load_config
from dpl_ray.config.parse import to_yaml

CLASSES = ("ant", "bee", "cat")
JOB = b'{"identity": {"class_names": ["ant", "bee", "cat"], "pool": "/pool"}}'  # of an output of dpl-ray label


@dataclass(frozen=True)
class Mistake:
    """One mistake."""

    id: str
    prepare: Callable[[Path], list[str]]  # makes files in an empty folder and returns the command's arguments
    fragments: tuple[str, ...]  # of the message; {tmp} is the folder


def command(mistake: Mistake, folder: Path) -> tuple[list[str], list[str]]:
    """(arguments, fragments): the run would write into the folder alone, and not to MLflow."""
    arguments = mistake.prepare(folder)
    set_already = {argument.partition("=")[0] for argument in arguments}
    for default in (f"run.storage_path={folder}/runs", "tracking.enabled=false"):
        if default.partition("=")[0] not in set_already:
            arguments = [*arguments, default]
    return arguments, [fragment.replace("{tmp}", str(folder)) for fragment in mistake.fragments]


# Files


def png(value: int = 0, size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size, value).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_folder(root: Path, classes: tuple[str, ...] = CLASSES, per_class: int = 6) -> Path:
    for index, name in enumerate(classes):
        for number in range(per_class):
            write(root / name / f"{number}.png", png(10 * index + number))
    return root


def write_pool(root: Path) -> Path:
    for number in range(4):
        write(root / f"{number}.png", png(100 + number))
    return root


# Arguments


def plain(*arguments: str) -> Callable[[Path], list[str]]:
    """Arguments that need no file; {tmp} is the folder."""
    return lambda tmp: [argument.replace("{tmp}", str(tmp)) for argument in arguments]


def images(*more: str, spoil: dict[str, bytes] | None = None, test: tuple[str, ...] = ()) -> Any:
    """A good folder with a pool, and then what is wrong with it: files (path -> content) and arguments."""

    def prepare(tmp: Path) -> list[str]:
        write_folder(tmp / "train")
        write_pool(tmp / "pool")
        if test:
            write_folder(tmp / "test", test)
        for name, content in (spoil or {}).items():
            write(tmp / name, content)
        return plain("data=image_folder", "data.train={tmp}/train", "data.unlabeled={tmp}/pool", *more)(tmp)

    return prepare


def table(*more: str, labels: list[Any] | None = None, content: bytes | None = None) -> Any:
    """A good parquet file (or one of these labels, or of this content), and then arguments."""

    def prepare(tmp: Path) -> list[str]:
        found = [0, 1, 2] * 4 if labels is None else labels
        columns = pa.table({"image": [png(number) for number in range(len(found))], "label": found})
        pq.write_table(columns, tmp / "train.parquet")
        if content is not None:
            write(tmp / "train.parquet", content)
        return plain("data=parquet", "data.train={tmp}/train.parquet", "data.num_labels_per_class=1", *more)(tmp)

    return prepare


def csv(text: str | bytes) -> Any:
    """Good images with a pool and a CSV of this text."""
    content = text if isinstance(text, bytes) else text.encode()
    return images("data.train={tmp}/labels.csv", spoil={"labels.csv": content})


def other_run(tmp: Path) -> list[str]:
    """A run of this name with another learning rate and batch."""
    old = load_config(["run.name=first", "optim.learning_rate=0.1", "train.batch_size=32"])
    write(tmp / "runs" / "first" / "config.yaml", to_yaml(old).encode())
    return ["run.name=first"]


def comparison(tmp: Path) -> list[str]:
    write(tmp / "runs" / "first" / "comparison.json", b"{}")
    return ["run.name=first"]


def empty_class(tmp: Path) -> list[str]:
    (tmp / "train" / "dog").mkdir(parents=True)
    return images()(tmp)


def storage_in_file(tmp: Path) -> list[str]:
    write(tmp / "notes.txt", b"not a folder")
    return [f"run.storage_path={tmp}/notes.txt/runs"]


def storage_is_file(tmp: Path) -> list[str]:
    write(tmp / "notes.txt", b"not a folder")
    return [f"run.storage_path={tmp}/notes.txt"]


MISTAKES = (
    # Names
    Mistake("option", plain("--polcy=dpl"), ("--polcy=dpl: there is no such option", "field=value", "--help")),
    Mistake("no_value", plain("cifar-10"), ("cifar-10: says no field=value", "did you mean data=cifar10?")),
    Mistake("spaces", plain("train.num_steps", "=", "5"), ("train.num_steps: says no", "without spaces around the =")),
    Mistake("group", plain("dataset=cifar10"), ("dataset=cifar10: there is no field dataset", "did you mean data?")),
    Mistake("group_option", plain("data=cifar-10"), ("data=cifar-10: there is no such data", "did you mean cifar10?")),
    Mistake(
        "policy",
        plain("policy=fixmach"),
        ("no such policy; known: abc, adamatch, dash, debiaspl, dpl, fixmatch", "did you mean fixmatch?"),
    ),
    Mistake("policy_after", plain("policy.rule=band", "policy=nope"), ("policy=nope: there is no such policy",)),
    Mistake("policy_name", plain("policy.name=fixmatch"), ("policy.name=fixmatch: policy is chosen as policy=",)),
    Mistake("field", plain("train.batch_sz=8"), ("there is no field train.batch_sz", "mean train.batch_size?")),
    Mistake("section", plain("training.mu=8"), ("there is no field training.mu", "did you mean train.mu?")),
    Mistake("no_section", plain("num_workers=8"), ("no field num_workers", "did you mean scale.num_workers?")),
    Mistake("section_as_field", plain("train=8"), ("train=8: train is a section", "as train.num_steps=")),
    Mistake("field_in_dict", plain("train={num_stepz: 8}"), ("no field train.num_stepz", "mean train.num_steps?")),
    Mistake("plus", plain("+train.num_steps=8"), ("+train.num_steps=8", "field=value, without + or ~")),
    Mistake("tilde", plain("~train.num_steps"), ("~train.num_steps", "field=value, without + or ~")),
    Mistake("hydra", plain("hydra.run.dir=x"), ("there is no field hydra.run.dir; --help lists all",)),
    Mistake("interpolation", plain("run.name=${nme}"), ("run.name: Interpolation key 'nme' not found",)),
    Mistake("policy_parameter", plain("policy.epsilom=0.1"), ("policy=dpl has no such", "did you mean epsilon?")),
    Mistake("other_policy", plain("policy=fixmatch", "policy.rule=band"), ("policy=fixmatch has", "policy=dpl has it")),
    # Types and bounds
    Mistake("sweep", plain("train.seed=1,2"), ("train.seed=1,2: one value a run", "[a,b]")),
    Mistake("quotes", plain("run.name=a(b"), ("run.name=a(b: not understood", "'run.name=\"a(b\"'")),
    Mistake("not_a_number", plain("train.num_steps=many"), ("train.num_steps=many: must be a whole number",)),
    Mistake("fraction", plain("train.num_steps=1.5"), ("train.num_steps=1.5: must be a whole number",)),
    Mistake("null", plain("train.num_steps=null"), ("train.num_steps=null: must be a whole number",)),
    Mistake("boolean", plain("scale.use_gpu=maybe"), ("scale.use_gpu=maybe: must be true or false",)),
    Mistake("list", plain("data.views.exclude=rotate"), ("must be a list, as data.views.exclude=[rotate]",)),
    Mistake("infinite", plain("optim.learning_rate=inf"), ("optim.learning_rate=inf: must be a finite number",)),
    Mistake("bound", plain("train.ema_decay=1"), ("train.ema_decay=1: must be less than 1",)),
    Mistake("choice", plain("data.fit=corp"), ("data.fit=corp: must be 'crop', 'pad' or 'sq", "did you mean crop?")),
    Mistake("run_name", plain("run.name=my run"), ("run.name=my run: must be letters, digits",)),
    Mistake("experiment", plain("tracking.experiment="), ("tracking.experiment=: must not be empty",)),
    Mistake("policy_type", plain("policy.epsilon=small"), ("policy.epsilon=small: must be a number",)),
    Mistake(
        "policy_bound",
        plain("policy=fixmatch", "policy.threshold=95"),
        ("policy.threshold=95: must be less than or equal to 1",),
    ),
    Mistake("policy_choice", plain("policy.rule=gausian"), ("policy.rule=gausian: must be", "mean gaussian?")),
    Mistake("operation", plain("data.views.exclude=[rotat]"), ("data.views.exclude=rotat", "did you mean rotate?")),
    Mistake("two_sides", plain("data.image_size=32x32"), ("=32x32: must be a whole number", "; as data.image_size=32")),
    Mistake("large", plain("data.image_size=2048"), ("=2048: must be less than or equal to 1024", "as 32 or 224;")),
    Mistake("no_step", plain("train.num_steps=0"), ("train.num_steps=0: must be greater", "the default is 2000")),
    Mistake("no_batch", plain("train.batch_size=0"), ("train.batch_size=0: must be greater", "the default is 16")),
    Mistake("transparency", plain("data.channels=4"), ("data.channels=4: must be 1 or 3", "also with transparency")),
    Mistake(
        "centre", plain("data.fit=centre"), ("data.fit=centre: must be 'crop'", "crop the longer side to its centre")
    ),
    # Fields that do not go together
    Mistake(
        "batch",
        plain("train.batch_size=15", "scale=local"),
        ("=15", "num_workers=2; 14 or 16 would"),
    ),
    Mistake(
        "batch_of_many_workers",
        plain("scale.num_workers=4095"),
        ("train.batch_size=16", "divide by scale.num_workers=4095", "CPUs here carry"),
    ),
    Mistake("beside_runs", plain("run.name=mlflow.db"), ("run.name=mlflow.db: something else of this name",)),
    Mistake("warmup", plain("optim=adamw", "train.num_steps=50"), ("num_warmup_steps=100: must be below", "=50")),
    Mistake("depth", plain("model.depth=18"), ("model.depth=18: must be 6 n + 4", "16, 22")),
    Mistake(
        "nothing_to_evaluate", plain("train.evaluate_every=5"), ("evaluate_every=5", "data.validation_fraction=0.1")
    ),
    Mistake("files_of_digits", plain("data.train=/x"), ("data.train=/x: data=digits brings its own", "data=parquet")),
    Mistake("no_files", plain("data=image_folder"), ("data.train is missing", "a folder with a subfolder per class")),
    Mistake("all_labelled", plain("data.num_labels_per_class=null"), ("=null: leaves no image", "_per_class=4")),
    Mistake("too_many_labels", plain("data.num_labels_per_class=1000"), ("=1000: class 8 has only", "use at most 139")),
    # The model
    Mistake(
        "architecture",
        plain("model=torchvision", "model.architecture=resnet81"),
        ("model.architecture=resnet81: torchvision has no such", "did you mean resnet18?"),
    ),
    Mistake(
        "weights",
        plain("model=torchvision", "model.weights=IMAGNET1K_V1"),
        ("model.weights=IMAGNET1K_V1: resnet18 has no such weights", "did you mean IMAGENET1K_V1?"),
    ),
    Mistake(
        "one_value",
        images("policy=supervised", "data.image_size=4", "train.batch_size=2", "data.unlabeled=null", "scale=local"),
        ("train.batch_size=2 with scale.num_workers=2: a worker has one labelled image", "train.batch_size=4 would do"),
    ),
    Mistake(
        "transformer",
        images("model=torchvision", "model.architecture=vit_b_16", "data.image_size=16"),
        (
            "data.image_size: vit_b_16 does not take images of 16x16",
            "set a size that it takes, as data.image_size=224",
        ),
    ),
    Mistake(
        "mu",
        images("train.mu=5000"),
        ("train.mu=5000: a step takes 80,000 unlabelled images", "the pool has 4; train.mu=1 would do"),
    ),
    Mistake(
        "shares",
        images("policy.shares=[1,2]"),
        ("policy.shares=[1.0, 2.0]: 2 numbers for 3 classes", "in this order"),
    ),
    # What the workers need
    Mistake(
        "workers",
        plain("scale.num_workers=4096", "train.batch_size=4096"),
        ("scale.num_workers=4096", "needs 2048 CPUs, this machine has", "workers fit"),
    ),
    Mistake(
        "gpus",
        plain("scale.use_gpu=true", "scale=local"),
        ("scale.use_gpu=true", "needs 2 GPUs, this machine has 0; scale.use_gpu=false"),
    ),
    Mistake(
        "gpu_in_process",
        plain("scale.use_gpu=true", "scale.num_workers=0"),
        ("scale.use_gpu=true", "this machine has no GPU; scale.use_gpu=false trains on CPUs"),
    ),
    Mistake(
        "no_cluster",
        plain("scale.address=127.0.0.1:1"),
        ("scale.address=127.0.0.1:1: no Ray cluster answers there", "ray start --head"),
    ),
    Mistake(
        "no_client", plain("scale.address=ray://127.0.0.1:1"), ("scale.address=ray://127.0.0.1:1: no Ray cluster",)
    ),
    Mistake("address", plain("scale.address=head"), ("scale.address=head: no Ray", "host:port or ray://host:port")),
    # Paths
    Mistake(
        "near_path",
        images("data.train={tmp}/trian"),
        ("data.train={tmp}/trian: there is no such", "did you mean train?"),
    ),
    Mistake(
        "no_path", images("data.test={tmp}/a/b"), ("data.test={tmp}/a/b: there is no such", "nor a folder {tmp}/a")
    ),
    Mistake(
        "no_variable",
        images("data.unlabeled=${NOT_SET_HERE}/pool"),
        ("data.unlabeled=${NOT_SET_HERE}/pool: the environment variable NOT_SET_HERE is not set; set it",),
    ),
    Mistake(
        "backslashes",
        images("data.train='C:\\photos\\train'"),
        ("data.train=C:\\photos\\train: there is no such file or folder; the folders of a path are separated by /",),
    ),
    Mistake(
        "empty_folder",
        images("data.unlabeled={tmp}/csv", spoil={"csv/.hidden": b""}),
        ("data.unlabeled={tmp}/csv: the folder is empty; copy images there, or name another folder",),
    ),
    Mistake(
        "archive",
        images("data.train={tmp}/photos.zip", spoil={"photos.zip": b"PK"}),
        ("data.train={tmp}/photos.zip: an archive is not read; unpack it, and give the folder",),
    ),
    Mistake(
        "archive_in_folder",
        images("data.unlabeled={tmp}/csv", spoil={"csv/photos.zip": b"PK"}),
        ("no image and no parquet file in it (1 .zip left out); an archive is not read; unpack it",),
    ),
    Mistake(
        "arrays",
        images("data.unlabeled={tmp}/pool.npz", spoil={"pool.npz": b"PK"}),
        ("data.unlabeled={tmp}/pool.npz: arrays are not read from files; load them", "dpl_ray.fit_arrays"),
    ),
    Mistake("no_match", images("data.unlabeled={tmp}/pool/*.bmp"), ("data.unlabeled={tmp}/pool/*.bmp: no file",)),
    Mistake(
        "out_of_reach",
        images("data.train='s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:1'"),
        ("data.train=s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:1: the file system does not answer",),
    ),
    Mistake("scheme", images("data.train=s4://bucket/x"), ("data.train=s4://bucket/x", "s3://bucket/path")),
    Mistake("root", plain("data=fashion_mnist", "data.root={tmp}/x"), ("data.root={tmp}/x: there is no such folder",)),
    Mistake(
        "not_here",
        plain("data=cifar10", "data.root={tmp}", "data.download=false"),
        ("data.download=false: cifar10 is not on this machine", "cifar-10-batches-py"),
    ),
    Mistake("stream_of_arrays", plain("data.pool.mode=stream"), ("data.pool.mode=stream: data=digits is in memory",)),
    Mistake(
        "stream_of_sizes",
        images("data.pool.mode=stream", "data.image_size=null"),
        ("data.pool.mode=stream, which takes images of one size", "data.image_size=32"),
    ),
    # Images and labels
    Mistake(
        "no_image",
        images("data.unlabeled={tmp}/csv", spoil={"csv/a.txt": b"a"}),
        ("no image and no parquet file in it (1 .txt left out)",),
    ),
    Mistake("no_class_folder", images("data.train={tmp}/pool"), ("data.train={tmp}/pool", "no subfolder per class")),
    Mistake(
        "one_class",
        images("data.train={tmp}/one", spoil={"one/ant/0.png": png()}),
        ("data.train={tmp}/one: ant is not enough; there must be at least 2 classes: add labelled images of another",),
    ),
    Mistake(
        "parts",
        images("data.train={tmp}"),
        ("its subfolders train, pool are called as parts", "give data.train={tmp}/train data.unlabeled={tmp}/pool (or"),
    ),
    Mistake(
        "nested",
        images("data.train={tmp}/photos", spoil={"photos/all/ant/0.png": png(), "photos/all/bee/0.png": png(1)}),
        ("2 images lie in folders below those of the classes, as all/ant/0.png", "data.classes_by=leaf makes that ant"),
    ),
    Mistake("empty_class", empty_class, ("data.train={tmp}/train: no labelled image of the class dog",)),
    Mistake("other_class", images("data.test={tmp}/test", test=("ant", "bea")), ("label bea of", "did you mean bee?")),
    Mistake(
        "test_on_train", images("data.test={tmp}/train"), ("data.test={tmp}/train: 18 of its images are in data.tr",)
    ),
    Mistake("class_twice", images("data.class_names=[ant,ant,cat]"), ("data.class_names: ant is there more than",)),
    Mistake("empty_pool", images("data.unlabeled=null"), ("data.unlabeled=null: there is no unlabelled image",)),
    Mistake("pool_is_train", images("data.unlabeled={tmp}/train"), ("data.unlabeled={tmp}/train: there is no unlab",)),
    Mistake(
        "bad_images",
        images(spoil={"train/ant/1.png": b"no image", "train/bee/1.png": b""}),
        ("data.max_bad_fraction=0.01: 2 of 22 images", "{tmp}/train/ant/1.png (not an image)"),
    ),
    Mistake(
        "sizes",
        images("data.image_size=null", spoil={"train/bee/0.png": png(0, (5, 9))}),
        ("data.image_size=null: images differ in size", "8x8", "5x9", "data.image_size=32"),
    ),
    Mistake(
        "validation",
        images("data.num_labels_per_class=1", "data.validation_fraction=0.5"),
        ("data.validation_fraction=0.5: every class has one label only",),
    ),
    Mistake("test_fraction", images("data.test_fraction=0"), ("data.test_fraction=0: must be greater than 0",)),
    # Parquet
    Mistake(
        "parquet_as_folder", table("data=image_folder"), ("data.train={tmp}/train.parquet: holds parquet files, which",)
    ),
    Mistake("folder_as_parquet", images("data=parquet"), ("data.train={tmp}/train: holds no parquet file",)),
    Mistake(
        "column", table("data.image_column=img"), ("data.image_column=img", "image: binary", "did you mean image?")
    ),
    Mistake(
        "column_type", table("data.image_column=label"), ("data.image_column=label", "has int64 there", "encoded bytes")
    ),
    Mistake("label_type", table(labels=[0.5] * 6), ("data.label_column=label", "has double there", "integers")),
    Mistake("label_outside", table("data.class_names=[a,b]"), ("label 2 of", "outside the 2 classes 0 to 1")),
    Mistake(
        "from_1",
        table(labels=[1, 2, 3] * 4),
        ("its labels are 1, 2, 3, but class indices begin with 0; write 0 to 2", "data.class_names=[1,2,3]"),
    ),
    Mistake("label_infinite", table(labels=[0.0, float("inf")]), ("has double there", "also as whole floats")),
    Mistake("gap", table(labels=[0, 0, 0, 2, 2, 2]), ("no labelled image of the class 1",)),
    Mistake("unlabelled", table(labels=[-1] * 6), ("none of its 6 images has a label (all are null or -1)",)),
    Mistake("corrupt", table(content=b"PAR1 and nothing"), ("{tmp}/train.parquet is not a readable parquet file",)),
    # Pseudo-labels
    Mistake("labels_of_digits", plain("data.labels=/x"), ("data.labels=/x: data=digits brings its own images",)),
    Mistake(
        "labels_missing",
        plain("data.labels_per_class=4"),
        ("data.labels_per_class=4: there are no pseudo-labels to choose from; set data.labels", "num_labels_per_class"),
    ),
    Mistake(
        "no_output",
        images("data.labels={tmp}/pool"),
        ("data.labels={tmp}/pool: is no output of dpl-ray label (no _ledger/job.json in it)",),
    ),
    Mistake(
        "unfinished_output",
        images("data.labels={tmp}/labels", spoil={"labels/_ledger/job.json": JOB}),
        ("data.labels={tmp}/labels: is not finished (no _report/summary.json); run the same dpl-ray label command",),
    ),
    # CSV
    Mistake("header", csv("file,label\ntrain/ant/0.png,a\n"), ("the header is file,label; it needs the columns path",)),
    Mistake("no_row", csv("path,label\n"), ("data.train={tmp}/labels.csv: no row below the header",)),
    Mistake("twice", csv("path,label\na.png,a\na.png,b\n"), ("row 2 names {tmp}/a.png again",)),
    Mistake("missing", csv("path,label\n" + "".join(f"{i}.png,{i % 2}\n" for i in range(6))), ("(file is missing)",)),
    Mistake(
        "windows",
        csv("path,label\nC:\\me\\ant\\0.png,ant\n"),
        ("row 1 names C:/me/ant/0.png, a path of Windows; write paths relative to the folder", "as ant/0.png"),
    ),
    Mistake(
        "texts_from_1",
        csv("path,label\n" + "".join(f"{i}.png,{1 + i % 2}\n" for i in range(6))),
        ("its labels are 1, 2, but class indices begin with 0; data.class_names=[1,2] takes them as names",),
    ),
    Mistake("binary", csv(png()), ("data.train={tmp}/labels.csv: cannot be read as CSV in UTF-8",)),
    # Where the run goes
    Mistake(
        "other_run",
        other_run,
        ("run.name=first: this run exists with optim.learning_rate=0.1, now it is 0.03", "1 more"),
    ),
    Mistake("comparison", comparison, ("run.name=first: a comparison has this name; take another run.name",)),
    Mistake("storage_in_file", storage_in_file, ("run.storage_path={tmp}/notes.txt/runs: cannot be written",)),
    Mistake("storage_is_file", storage_is_file, ("run.storage_path={tmp}/notes.txt: cannot be written",)),
    Mistake(
        "storage_out_of_reach",
        plain("run.storage_path='s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:1'"),
        ("run.storage_path=s3://bucket/x?scheme=http&endpoint_override=127.0.0.1:1: cannot be written", "region"),
    ),
    Mistake("storage_scheme", plain("run.storage_path=s4://a/b"), ("run.storage_path=s4://a/b: there is no", "s3://")),
    Mistake(
        "bucket_without_server",
        plain("run.storage_path=s3://bucket/runs", "tracking.enabled=true"),
        ("run.storage_path=s3://bucket/runs: the default MLflow store is a local file", "tracking.uri"),
    ),
    Mistake(
        "no_address_of_a_store",
        plain("run.storage_path='/tmp/what?'", "tracking.enabled=true"),
        ("run.storage_path=/tmp/what?: the address of the default MLflow store", "takes no ?", "tracking.uri"),
    ),
)
