"""Where a command writes to, checked before it starts to work: the field `output`."""

from __future__ import annotations

import pyarrow as pa

from dpl_ray.store.file_systems import one_line
from dpl_ray.store.storage import Storage


def open_output(given: str, kind: str = "folder") -> Storage:
    """A folder, or a file of a folder (`kind`), that can be written; `ValueError` where it cannot."""
    try:
        output = Storage(given)
        (output if kind == "folder" else output.parent).check_writable()
    except (OSError, ValueError, pa.ArrowException) as error:
        raise ValueError(f"output={given}: cannot be written ({one_line(error)}); give another {kind}") from None
    return output


def check_free(output: Storage, file: str = "", what: str = "") -> None:
    """`ValueError` where the folder is not empty, unless it holds `what`, as its `file` shows."""
    if output.list() and not (file and (output / file).exists()):
        state = f"holds no {what}" if what else "not empty"
        raise ValueError(f"output={output}: is there already and {state}; take another folder")
