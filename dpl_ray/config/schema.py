"""The configuration tree: one pydantic model per group of `conf/`.

The models hold every field, its meaning, its bounds and its default; the YAML files of `conf/` say only what
differs. `dpl_ray.config.compose` builds a `Config` from them and from command-line overrides. Nothing here imports
torch or Ray: a mistake is answered before they are loaded.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dpl_ray.config.policies import DplConfig, PolicyConfig
from dpl_ray.config.section import Section

STORAGE_SCHEMES = ("s3", "gs", "gcs", "abfs", "abfss", "hdfs", "viewfs", "file")  # of pyarrow's file systems
CURVE_POINTS = 20  # of train.curve_every, where nothing else is said
CHECKPOINT_SHARE = 0.02  # of the time: most that checkpoints take which are written for the time since the last one
#: Of what the unlabelled images are; the other fields of data.pool say how they are read.
BENCHMARK_FIELDS = ("data.pool.imbalance", "data.pool.foreign", "data.pool.cleaned")
MOST_WORKERS = 4096
FILE_FORMS = ("image_folder", "parquet", "webdataset")  # of data.name: your own files of images
BESIDE_RUNS = ("ray", "mlflow.db", "mlflow-artifacts")  # in run.storage_path, and no runs
DataName = Literal[
    "digits", "fashion_mnist", "cifar10", "cifar100", "svhn", "stl10",
    "image_folder", "parquet", "webdataset", "arrays", "features",
]  # fmt: skip
OperationName = Literal[
    "identity", "color", "sharpness", "autocontrast", "equalize", "brightness", "contrast",
    "posterize", "solarize", "rotate", "shear_x", "shear_y", "translate_x", "translate_y",
]  # fmt: skip

LEAST_TEMPERATURE, MOST_TEMPERATURE = 0.01, 100.0
Temperature = Annotated[
    float,
    Field(
        ge=LEAST_TEMPERATURE,
        le=MOST_TEMPERATURE,
        description="number that the logits are divided by, so that confidences are calibrated; dpl-ray evaluate says "
        "which; 1 leaves them",
    ),
]


class ViewsConfig(Section):
    """The random weak and strong views of an image; the defaults are the published recipe for CIFAR."""

    crop_padding: float = Field(
        0.125, ge=0, le=0.5, description="reflected border before the random crop, share of the side"
    )
    horizontal_flip: bool = Field(True, description="mirror at random; false where left and right carry the class")
    num_operations: int = Field(3, ge=0, le=14, description="random operations of a strong view")
    cutout: float = Field(0.5, ge=0, le=1, description="largest side of the grey square, share of the width")
    exclude: tuple[OperationName, ...] = Field(
        (), description="operations to leave out of the strong views, because they change the class"
    )


class PoolConfig(Section):
    """The unlabelled images: how they reach the steps, and for benchmarks which of them do."""

    mode: Literal["auto", "memory", "stream"] = Field(
        "auto", description="stream: read your own files during training; auto: stream where memory_share is exceeded"
    )
    memory_share: float = Field(
        0.2, gt=0, le=1, description="auto: stream where the decoded images take more than this share of the memory"
    )
    shuffle_rows: int = Field(
        8192,
        ge=1,
        description="stream: number of rows that are shuffled together, over all workers",
    )
    windows_ahead: int | None = Field(
        None,
        ge=1,
        description="stream: shares of such rows that each worker has read in advance; null: all workers together "
        "three for every CPU of the cluster, in at most half of its object store",
    )
    imbalance: float | None = Field(
        None,
        gt=0,
        description="for benchmarks: images of the first class in the pool for one of the last, others are left out; "
        "below 1 the last class is the most frequent; null: as it is",
    )
    foreign: float | None = Field(
        None,
        gt=0,
        lt=1,
        description="for benchmarks: share of the classes, the last ones, that leave labels and test while their "
        "images stay in the pool; null: none",
    )
    cleaned: bool = Field(
        False, description="with data.pool.foreign: their images leave the pool too, as if it had been cleaned"
    )


class DataConfig(Section):
    """Where images and labels come from, and how they are made one size."""

    name: DataName = Field(
        "digits",
        description="data set; image_folder, parquet and webdataset read your own files, features reads what dpl-ray "
        "embed wrote of them, arrays are given in Python",
    )
    root: str | None = Field(
        None, description="folder of a standard data set's files; null: the usual places, then download"
    )
    download: bool = Field(True, description="download a standard data set that is not on this machine")
    train: str | None = Field(
        None,
        description="own images to train on: folder with a subfolder per class, CSV of path,label, parquet or tars; "
        "glob or s3://, gs:// too",
    )
    unlabeled: str | tuple[str, ...] | None = Field(
        None, description="own unlabelled images: folder, glob, parquet or tars, or a list of them"
    )
    test: str | None = Field(
        None, description="own labelled test images, same form as data.train; null: a share of data.train"
    )
    classes_by: Literal["folder", "leaf", "path"] = Field(
        "folder",
        description="class of an image in a folder. folder: the subfolder of data.train; leaf: the folder that holds "
        "the image; path: all folders on the way, as a/b",
    )
    labels: str | None = Field(
        None, description="output of dpl-ray label: its selected samples are trained on with their pseudo-labels"
    )
    labels_per_class: int | None = Field(
        None, ge=1, description="samples of data.labels that are taken of each class, the most confident; null: all"
    )
    image_column: str = Field("image", description="parquet column of encoded bytes, or of the struct {bytes, path}")
    label_column: str | None = Field(
        "label",
        description="parquet column, or field of the .json in tars, of labels (class index or name; null or -1: "
        "unlabelled)",
    )
    class_names: tuple[str, ...] | None = Field(
        None, description="classes in the order of their indices; null: from the data"
    )
    image_size: int | None = Field(
        None,
        ge=4,
        le=1024,
        description="side in pixels that images are resized to, as 32 or 224; null: that of the pretrained weights, "
        "else as they are (all must agree)",
    )
    channels: Literal[1, 3] = Field(3, description="1: grey, 3: RGB; every mode is converted, also with transparency")
    fit: Literal["crop", "pad", "squash"] = Field(
        "crop", description="other shapes than square: crop the longer side to its centre, pad the shorter, or squash"
    )
    interpolation: Literal["area", "bilinear", "bicubic"] | None = Field(
        None, description="how images are resized; null: as for the pretrained weights, else bilinear"
    )
    num_labels_per_class: int | None = Field(
        None,
        ge=1,
        description="keep this many labels a class, drawn by data.subset_seed, and put the rest in the pool; "
        "null: all labels",
    )
    subset_seed: int | None = Field(None, ge=0, description="seed of labelled subset and splits; null: train.seed")
    validation_fraction: float = Field(
        0.0, ge=0, lt=1, description="share of the labelled images held out for selection, by class"
    )
    test_fraction: float = Field(0.2, gt=0, lt=1, description="share held out as test split where the data has none")
    allow_overlap: bool = Field(
        False, description="own images: train although test images are labelled ones too, and keep copies in the pool"
    )
    allow_outside: bool = Field(
        False,
        description="read images that a CSV or parquet file names outside of its folder and of the other places of "
        "data; of a file that you trust",
    )
    allowed_hosts: tuple[str, ...] = Field(
        (),
        description="buckets and hosts of addresses in a CSV or parquet file that are read, with your credentials, as "
        "[bucket,localhost:9000]",
    )
    max_bad_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        description="a larger share of unreadable images stops the run; 1 is allowed, unless it is 0",
    )
    pool: PoolConfig = Field(PoolConfig(), description="the unlabelled images")
    views: ViewsConfig = Field(ViewsConfig(), description="weak and strong views")


class ModelConfig(Section):
    """The network: images to features to logits."""

    name: Literal["wide_resnet", "torchvision", "timm", "head"] = Field(
        "wide_resnet", description="family of backbones, or the library that has them; head: none, on stored features"
    )
    depth: int = Field(28, le=1000, description="wide_resnet: layers, 6 n + 4 (10, 16, 22, 28, ...)")
    width: int = Field(2, ge=1, le=16, description="wide_resnet: factor on the channels 16, 32, 64")
    normalization: Literal["batch", "sync", "group"] = Field(
        "batch",
        description="wide_resnet: batch; sync, whose statistics are those of all workers' images; or group, which uses "
        "no batch statistics",
    )
    bn_momentum: float = Field(
        0.05, gt=0, le=1, description="BatchNorm: weight of the newest batch in the running statistics"
    )
    architecture: str = Field("resnet18", description="torchvision, timm: name of a model")
    weights: str | None = Field(
        None,
        description="pretrained weights: a file (.safetensors, .pth); torchvision: a name (DEFAULT, IMAGENET1K_V1); "
        "timm: pretrained, hf-hub:OWNER/NAME; null: random",
    )
    hidden: int | None = Field(
        None, ge=1, description="head: units of a hidden layer between features and classifier; null: no such layer"
    )
    num_features: int | None = Field(
        None, ge=1, description="head: numbers of a sample's features; null: as many as the data have"
    )
    train: str = Field(
        "all", description="what is trained: all; head, the classifier alone; or last:N, the last N layers with it"
    )

    adapter: Literal["lora"] | None = Field(
        None,
        description="lora: low-rank adapters, trained beside the frozen backbone (pip install 'dpl_ray[lora]'); null: "
        "none",
    )
    lora_rank: int = Field(8, ge=1, description="lora: rank of an adapter, as peft has it")
    lora_alpha: int = Field(8, ge=1, description="lora: alpha; alpha / rank multiplies an adapter, as peft has it")

    @field_validator("train")
    @classmethod
    def _check_train(cls, value: str) -> str:
        if not re.fullmatch(r"all|head|last:[1-9]\d*", value):
            raise ValueError("must be all, head or last:N, as last:2")
        return value


class OptimConfig(Section):
    """Optimizer and learning-rate schedule: lr * cos(cosine * pi t / 16 T) after the warm-up."""

    name: Literal["sgd", "adamw"] = Field("sgd", description="optimizer; sgd has Nesterov momentum")
    learning_rate: float = Field(0.03, gt=0, description="learning rate at the start")
    momentum: float = Field(0.9, ge=0, lt=1, description="sgd: momentum; adamw: beta 1")
    weight_decay: float = Field(5e-4, ge=0, description="weight decay, on parameters of 2 or more dimensions only")
    layer_decay: float = Field(
        1.0, gt=0, le=1, description="factor on the learning rate from a layer of the backbone to the one before it"
    )
    num_warmup_steps: int = Field(0, ge=0, description="steps of linear warm-up")
    cosine: float = Field(
        7.0, ge=0, le=8, description="where the cosine of the learning rate ends, in sixteenths of pi; 8: at 0"
    )


class TrainConfig(Section):
    """The training run. Sizes are global: more workers split the same batches."""

    num_steps: int = Field(2000, ge=1, description="training steps; each takes one global batch")
    batch_size: int = Field(16, ge=1, description="B: labelled images in the global batch")
    mu: int = Field(7, ge=1, description="unlabelled images for each labelled one in the global batch")
    lambda_u: float = Field(1.0, ge=0, description="weight of the unlabelled loss")
    lambda_u_ramp: float = Field(0.0, ge=0, le=1, description="share of the run over which lambda_u rises from 0")
    lambda_u_half: float | None = Field(
        None, gt=0, description="steps after which lambda_u has halved, as 1 / (1 + step / these steps); null: it stays"
    )
    ema_decay: float = Field(
        0.999, ge=0, lt=1, description="decay of the teacher's weights, warmed up over the first steps"
    )
    seed: int = Field(0, ge=0, description="seed of initial weights, order, views and splits")
    precision: Literal["float32", "bfloat16"] = Field(
        "float32", description="bfloat16 is autocast; master weights stay float32"
    )
    weak_precision: Literal["float32", "bfloat16"] | None = Field(
        None, description="precision of the weak views' pass, which has no gradient; null: train.precision"
    )
    compile: bool = Field(
        False, description="GPU: torch.compile of network and views; faster steps after a minute or more"
    )
    deterministic: bool = Field(
        False, description="GPU: deterministic algorithms alone, for the same weights from every start"
    )
    baseline: bool = Field(True, description="also train the supervised baseline on the same labels, for comparison")
    log_every: int = Field(50, ge=1, description="steps between two records of the metrics")
    evaluate_every: int | None = Field(
        None, ge=1, description="steps between evaluations on the validation split; null: at the end"
    )
    curve_every: int | None = Field(
        None, ge=1, description=f"steps between scores on a fixed part of the test split; null: {CURVE_POINTS} in all"
    )
    curve_images: int = Field(2000, ge=0, description="largest number of test images in such a score; 0: no scores")
    checkpoint_every: int = Field(500, ge=1, description="steps between checkpoints; there is always one at the end")
    checkpoint_seconds: float = Field(
        60.0,
        gt=0,
        description="longest time between two checkpoints; longer where they would take more than "
        f"{100 * CHECKPOINT_SHARE:g} % of it",
    )
    keep_checkpoints: int = Field(2, ge=1, description="number of newest checkpoints that are kept")


class ScaleConfig(Section):
    """How many workers, and what each of them needs."""

    num_workers: Annotated[int, Field(ge=0, le=MOST_WORKERS)] | tuple[int, int] | None = Field(
        None,
        description="Ray Train workers; [min,max]: as many as there is room for, while nodes go and come; 0: in this "
        "process, without Ray; null: chosen by the size of the job",
    )
    cpus_per_worker: float = Field(0.5, gt=0, description="CPUs that a worker reserves (leave some for Ray Data)")
    threads_per_worker: int | None = Field(
        None,
        ge=1,
        description="threads of a worker's tensor operations; null: the node's CPUs / its workers, in this process the "
        "cores that are free",
    )
    use_gpu: bool = Field(False, description="give each worker a GPU, with NCCL")
    address: str | None = Field(
        None, description="Ray cluster: auto, ray://host:port; null: RAY_ADDRESS, else start one here"
    )
    max_failures: int = Field(3, ge=0, description="restarts from the last checkpoint after a lost worker")
    seconds_without_progress: float = Field(
        1800.0,
        gt=0,
        description="longest time without a step, an evaluation or a checkpoint; then the workers are lost",
    )

    @field_validator("num_workers", mode="before")
    @classmethod
    def _check_range(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and not (
            len(value) == 2 and all(type(end) is int for end in value) and 1 <= value[0] <= value[1] <= MOST_WORKERS
        ):
            raise ValueError(f"a range is [min,max] with 1 <= min <= max <= {MOST_WORKERS}")
        return value

    @property
    def worker_range(self) -> tuple[int, int]:
        """Fewest and most workers; 0 where this process trains, or where nothing is chosen yet."""
        number = self.num_workers or 0
        return (number, number) if isinstance(number, int) else number


class RunConfig(Section):
    """The run's name and place."""

    name: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the run; the same name continues it; null: a new name from data, policy and time",
    )
    storage_path: str = Field(
        "runs", min_length=1, description="folder of runs (local, s3://, gs://): checkpoints, records, report"
    )
    grace_seconds: float = Field(
        25.0, gt=0, description="longest time from Ctrl-C or SIGTERM to the end, with a checkpoint after the step"
    )


class TrackingConfig(Section):
    """MLflow."""

    enabled: bool = Field(True, description="record the run in MLflow")
    uri: str | None = Field(
        None, description="tracking server; null: MLFLOW_TRACKING_URI, else SQLite in run.storage_path"
    )
    experiment: str = Field("dpl_ray", min_length=1, description="MLflow experiment")


class RegistryConfig(Section):
    """MLflow's model registry."""

    name: str | None = Field(
        None, pattern=r"^[^/:'\"]+$", description="name of a registered model; the final model becomes a version of it"
    )
    alias: str = Field("candidate", pattern=r"^[A-Za-z0-9_-]+$", description="alias that this version gets")


class Config(Section):
    """The whole configuration of a training run."""

    data: DataConfig = Field(DataConfig(), description="images and labels")
    model: ModelConfig = Field(ModelConfig(), description="network")
    policy: PolicyConfig = Field(
        DplConfig(), discriminator="name", description="pseudo-labelling policy and its parameters"
    )
    optim: OptimConfig = Field(OptimConfig(), description="optimizer and schedule")
    train: TrainConfig = Field(TrainConfig(), description="steps and batches")
    scale: ScaleConfig = Field(ScaleConfig(), description="workers")
    run: RunConfig = Field(RunConfig(), description="name and place")
    tracking: TrackingConfig = Field(TrackingConfig(), description="MLflow")
    registry: RegistryConfig = Field(RegistryConfig(), description="MLflow's model registry")
