"""Whether the settings of a training fit its data, before it begins."""

from __future__ import annotations

from collections.abc import Sequence

from dpl_ray.config.schema import Config
from dpl_ray.data.dataset import Splits
from dpl_ray.data.features.folder import read_spec
from dpl_ray.data.splits.split import EmptyPoolError

MOST_TIMES = 100  # that a step may take an image of the pool


def settle_model(config: Config) -> Config:
    """The configuration with the image size and interpolation of its pretrained weights, where it says nothing of them.

    torch is loaded only to look into a library of networks.

    Raises:
        ValueError: the library has no such network or weights, or these do not fit.
    """
    if config.model.name == "wide_resnet":
        return config
    if config.model.name == "head":
        return _settle_head(config)
    from dpl_ray.models import library_of

    library = library_of(config.model)
    library.check(config.model)
    expected = library.preprocessing(config.model)
    if expected is None:
        return config
    data = config.data
    return config.changed(
        data={
            "image_size": data.image_size or expected.image_size,
            "interpolation": data.interpolation or expected.interpolation,
        }
    )


def _settle_head(config: Config) -> Config:
    """With the size of the features; `ValueError` where it is another one than the configuration has."""
    assert config.data.train is not None, "the configuration requires it"
    spec = read_spec("data.train", config.data.train)
    if config.model.num_features not in (None, spec.num_features):
        raise ValueError(
            f"model.num_features={config.model.num_features}: the features of data.train have {spec.num_features} "
            "numbers; leave it null"
        )
    return config.changed(model={"num_features": spec.num_features})


def check_pool_use(config: Config, splits: Splits) -> None:
    """Refuse steps that take every image of the pool many times, and class shares that are not one for each class."""
    size, pool_size = config.train.batch_size * config.train.mu, len(splits.unlabeled)
    if config.policy.name != "supervised" and size > MOST_TIMES * pool_size:
        most = max(1, pool_size // config.train.batch_size)
        kind = ValueError if config.data.labels is None else EmptyPoolError
        raise kind(
            f"train.mu={config.train.mu}: a step takes {size:,} unlabelled images, train.mu for each of the "
            f"train.batch_size={config.train.batch_size} labelled ones, and the pool has {pool_size:,}; "
            f"train.mu={most} would do"
        )
    check_shares(getattr(config.policy, "shares", None), splits.class_names)


def check_shares(shares: object, class_names: Sequence[str]) -> None:
    """Refuse a policy's class shares of the pool that are not one for each class."""
    if isinstance(shares, list | tuple) and len(shares) != len(class_names):
        raise ValueError(
            f"policy.shares={list(shares)}: {len(shares)} numbers for {len(class_names)} classes; one for each of "
            f"{', '.join(class_names[:10])}{', ...' if len(class_names) > 10 else ''}, in this order"
        )


def check_test(splits: Splits) -> None:
    """Refuse data without a test image where policies are judged by them."""
    if not len(splits.test):
        raise ValueError(
            "data.test=null: there is no test image to compare on, as no class has a labelled one to spare; set "
            "data.test, or label two images of a class"
        )


def check_network(config: Config, splits: Splits) -> None:
    """Refuse a network that does not take these images."""
    from dpl_ray.models import check_model

    channels, height, width = splits.labeled.images.shape[1:]
    check_model(config, channels, (height, width), len(splits.class_names))
