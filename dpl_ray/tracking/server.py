"""MLflow's server or database: its address, given, checked and shown without passwords, and a client of it."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dpl_ray.config.schema import Config
from dpl_ray.config.section import suggest
from dpl_ray.store.storage import Storage

if TYPE_CHECKING:
    from mlflow import MlflowClient

SCHEMES = ("http", "https", "sqlite", "postgresql", "mysql", "mssql")  # of servers and databases
_ADDRESS = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<rest>\S*)")
_SECRET_OPTION = re.compile(r"([?&][^=&#]*(?:pass|pwd|token|secret)[^=&#]*=)[^&#]*", re.IGNORECASE)


def tracking_uri(config: Config) -> str | None:
    """Where MLflow's records go; None where there are to be none."""
    if not config.tracking.enabled:
        return None
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if uri:
        check_uri("tracking.uri" if config.tracking.uri else "MLFLOW_TRACKING_URI", uri)
    if config.tracking.uri and config.tracking.uri != shown_uri(config.tracking.uri):
        raise ValueError(
            f"tracking.uri={shown_uri(config.tracking.uri)}: holds a password, which would be written into files and "
            "pages; give MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or the address as MLFLOW_TRACKING_URI"
        )
    return uri or default_uri(config.run.storage_path)[0]


def check_uri(field: str, uri: str) -> None:
    """`ValueError` where this is no address of a server or database; others than the known ones may be plugins'."""
    scheme, separator, _ = uri.partition("://")
    if scheme == "databricks":
        return
    if scheme.partition(":")[0].lower() == "file":  # also file:/x
        path = shown_uri(uri)[len("file:") :].removeprefix("//").rstrip("/")
        raise ValueError(
            f"{field}={shown_uri(uri)}: is a folder of files, which MLflow no longer takes as a store; give a database "
            f"in it, as sqlite:///{path}/mlflow.db"
        )
    if not separator:
        right = f"http://{uri}" if ":" in uri else "http://host:5000"
        raise ValueError(
            f"{field}={shown_uri(uri)}: is no address of an MLflow server or database; give it as {right}, or "
            "sqlite:////absolute/path/mlflow.db"
        )
    if scheme.partition("+")[0] not in SCHEMES and (near := suggest(scheme, SCHEMES)):
        raise ValueError(f"{field}={shown_uri(uri)}: MLflow knows no {scheme}://{near}")


def default_uri(storage_path: str) -> tuple[str, str]:
    """(tracking URI, artifact location) below run.storage_path: SQLite and a folder, both absolute.

    Raises:
        ValueError: SQLite cannot live in a bucket, nor its address have this path in it.
    """
    if "://" in storage_path and not storage_path.startswith("file://"):
        raise ValueError(
            f"run.storage_path={storage_path}: the default MLflow store is a local file; "
            "set tracking.uri to a server, or tracking.enabled=false"
        )
    storage = Storage(storage_path)
    if found := sorted(set("?%") & set(str(storage))):
        raise ValueError(
            f"run.storage_path={storage_path}: the address of the default MLflow store, which lies below it, takes no "
            f"{found[0]}; take another folder, set tracking.uri, or tracking.enabled=false"
        )
    return f"sqlite:///{storage / 'mlflow.db'}", Path(str(storage / "mlflow-artifacts")).as_uri()


def with_password(uri: str | None) -> str | None:
    """An address as it was written down, which is without its password."""
    given = os.environ.get("MLFLOW_TRACKING_URI", "")
    return given if given and shown_uri(given) == uri else uri


def shown_uri(text: str) -> str:
    """An address, or a text with addresses in it, without passwords and tokens, for what is written and shown."""
    return _ADDRESS.sub(_without_secrets, text)


def _without_secrets(address: re.Match[str]) -> str:
    scheme, rest = address["scheme"], address["rest"]
    # A password in the address of a database may have a slash in it.
    inside = r"[^/?#]" if scheme in ("http", "https") else "."
    rest = re.sub(rf"^([^@:/?#]*):{inside}*@", r"\1@", rest)
    return f"{scheme}://" + _SECRET_OPTION.sub(r"\1", rest)


def first_line(error: Exception) -> str:
    """What went wrong, in a line: of a request that failed, which one, without the stack of causes below it."""
    text = next(iter(str(error).strip().splitlines()), "").partition(" with exception ")[0]
    return shown_uri(f"{type(error).__name__}: {text}"[:300])


def make_client(uri: str) -> MlflowClient:
    """A client that is quiet and does not wait long.

    A SQLite file that is not there is made aside and put into place whole: two runs that begin together, or one that is
    killed, would leave it half migrated for good.
    """
    # Ten attempts over minutes are MLflow's default, and a line of migrations on stderr is Alembic's.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    from mlflow import MlflowClient

    # The stack of an error, too, which is told in a line of our own.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    path = Path(uri.removeprefix("sqlite:///"))
    if uri.startswith("sqlite:///") and not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as aside:
            MlflowClient(f"sqlite:///{aside}/mlflow.db").search_experiments()
            try:
                os.link(f"{aside}/mlflow.db", path)
            except OSError:  # another run was faster, or the file system has no links
                if not path.exists():
                    (Path(aside) / "mlflow.db").replace(path)
    return MlflowClient(tracking_uri=uri)
