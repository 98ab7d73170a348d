"""`~` and environment variables in the paths that a user writes: filled in here, where a path is opened."""

from __future__ import annotations

import os
import re
from pathlib import Path

_VARIABLE = re.compile(r"\$(?:([A-Za-z_]\w*)|\{([A-Za-z_]\w*)\})", re.ASCII)


def expand_path(path: str, field: str | None = None) -> str:
    """A local path with `~`, `$NAME` and `${NAME}` filled in; a part that a file or folder is called by stays as it is.

    Args:
        field: the path with its field, as messages begin with; None: the path alone.

    Raises:
        ValueError: a variable is not set, or there is no such user.
    """
    found = ""
    for part in re.split("(/)", path):
        is_home = part.startswith("~") and not found
        if (is_home or "$" in part) and not os.path.lexists(found + part):
            part = expand_variables(part, field or path)
            try:
                part = str(Path(part).expanduser()) if is_home else part
            except RuntimeError:
                raise ValueError(f"{field or path}: there is no user {part[1:]}; write the path in full") from None
        found += part
    return found


def expand_variables(text: str, field: str) -> str:
    """The text, as an address, with `$NAME` and `${NAME}` filled in; `ValueError` where one is not set."""

    def value(found: re.Match[str]) -> str:
        name = found[1] or found[2]
        if name not in os.environ:
            raise ValueError(f"{field}: the environment variable {name} is not set; set it, or write the path in full")
        return os.environ[name]

    return _VARIABLE.sub(value, text)
