"""A group of fields, and how a mistake in one is answered."""

from __future__ import annotations

import difflib
import json
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

LONGEST = 600  # characters of a message about a mistake
#: In an address; a variable in its place is none.
_SECRET = re.compile(r"(?<=://)[^/@\s]*:(?!\$)[^/@\s]+@|[?&][^=&#]*(key|pass|pwd|token|secret)[^=&#]*=", re.IGNORECASE)
LONGEST_WORD = 100  # that what is known is compared with


class Section(BaseModel):
    """A group of fields: frozen, and closed to unknown keys."""

    # Hydra reads run.name=12 and data.class_names=[0,1] as numbers: a field that is text takes them as text.
    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )

    def changed(self, **fields: Any) -> Self:
        """A copy with these fields, unchecked; a dict for a section changes fields of it."""

        def value(name: str, new: Any) -> Any:
            section = getattr(self, name)
            return section.changed(**new) if isinstance(section, Section) and isinstance(new, dict) else new

        return self.model_copy(update={name: value(name, new) for name, new in fields.items()})


S = TypeVar("S", bound=Section)


def ends_in(extension: str) -> AfterValidator:
    """Of a field: its text is empty, or a file name of this extension."""

    def check(name: str | None) -> str | None:
        if name and not name.lower().endswith(extension):
            raise ValueError(f"must end in {extension}")
        return name

    return AfterValidator(check)


def validated(model: type[S], values: Mapping[str, Any]) -> S:
    """The section of these values; the first mistake is a `ValueError` naming field, value and what would be right."""
    try:
        made = model.model_validate(values)
    except ValidationError as error:
        raise ValueError(_explain(model, error)) from None
    _refuse_secrets(made)
    return made


def _refuse_secrets(section: Section, above: str = "") -> None:
    """Configurations are written into files, pages and MLflow: no address in one may hold a password."""
    for name, value in section:
        field = f"{above}{name}"
        if isinstance(value, Section):
            _refuse_secrets(value, f"{field}.")
        for text in value if isinstance(value, tuple) else (value,):
            # Addresses of MLflow have a check of their own.
            if isinstance(text, str) and name != "uri" and (secret := _SECRET.search(text)):
                raise ValueError(
                    f"{field}={text[: secret.start()]}...: holds a password or key, which would be written into files; "
                    "give it in the environment, for s3:// as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
                )


@contextmanager
def in_short() -> Iterator[None]:
    """The message of a mistake is a line of at most LONGEST characters: a value may be a whole file that was pasted."""
    try:
        yield
    except ValueError as error:
        if len(text := str(error)) <= LONGEST and "\n" not in text:
            raise
        raise ValueError(short(" ".join(text.split("\n")))) from None


def short(text: str) -> str:
    """A text without its middle, where it has more than LONGEST characters."""
    if len(text) <= LONGEST:
        return text
    half = LONGEST // 2 - 3
    return f"{text[:half]} ... {text[-half:]}"


def suggest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` where a known word is near, else an empty string."""
    if len(word) > LONGEST_WORD:  # to compare takes the square of its length
        return ""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def shown(value: Any) -> str:
    """A value as the command line takes it."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(shown, value))}]"
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


#: pydantic's type of a mistake -> what would be right, where pydantic's own words are not a user's.
_RIGHT = {
    "int_parsing": "must be a whole number",
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_parsing": "must be a number",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "bool_parsing": "must be true or false",
    "bool_type": "must be true or false",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "string_pattern_mismatch": "must be letters, digits and . _ - alone, the first a letter or digit",
    "tuple_type": "must be a list, as {field}=[{given}]",
    "model_type": "must be a section of fields",
    "model_attributes_type": "must be a section of fields",
    "dict_type": "must be a section of fields",
}


def _explain(model: type[Section], error: ValidationError) -> str:
    """The first mistake that pydantic found: field, value and what would be right."""
    first = error.errors()[0]
    path, known, info = _fields(model, first["loc"])
    field, given = ".".join(path), shown(first.get("input"))
    context = first.get("ctx", {})
    if first["type"] == "extra_forbidden":
        return f"{field}={given}: there is no such field; known: {', '.join(known) or 'none'}{suggest(path[-1], known)}"
    if first["type"] == "union_tag_not_found":
        return f"{field}.name is missing: choose one with {field}=NAME"
    if first["type"] == "union_tag_invalid":
        names = context["expected_tags"].replace("'", "")
        return f"{field}.name={context['tag']}: there is no such {field}; known: {names}" + suggest(
            context["tag"], names.split(", ")
        )
    message = first["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    if first["type"] in _RIGHT:
        message = _RIGHT[first["type"]].format(field=field, given=given)
    if first["type"] == "tuple_type":  # says how it is written
        return f"{field}={given}: {message}"
    near = ""
    if first["type"] == "literal_error":
        near = suggest(given, [word.strip("'") for word in context["expected"].replace(" or ", ", ").split(", ")])
    return f"{field or 'the configuration'}={given}: {message}{near or _meaning(field, info, given)}"


def _meaning(field: str, info: FieldInfo | None, given: str) -> str:
    """What the field means, and a value that would do: the end of a message."""
    if info is None or not info.description or isinstance(info.default, Section):
        return ""
    example = "" if info.default is None or info.is_required() else f"; the default is {shown(info.default)}"
    if sides := re.fullmatch(r"[\[(]?(\d+)\s*[x,*]\s*\d+[\])]?", given):
        example = f"; as {field}={sides[1]}"
    return f" ({info.description}{example})"


def _fields(model: type[Section], place: tuple[int | str, ...]) -> tuple[list[str], list[str], FieldInfo | None]:
    """Names on the way to a mistake, and at its end the fields there are, and the one that is wrong."""
    path: list[str] = []
    field = None
    known, annotation = list(model.model_fields), typing.cast(Any, model)
    for part in place:
        if isinstance(part, int):  # a position in a list: the value says which one it is
            continue
        if typing.get_origin(annotation) in (types.UnionType, typing.Union):  # which of several sections or types it is
            sections = [each for each in typing.get_args(annotation) if hasattr(each, "model_fields")]
            if not sections:
                break
            annotation = next(each for each in sections if each.model_fields["name"].default == part)
            continue
        path.append(part)
        known, field = list(annotation.model_fields), annotation.model_fields.get(part)
        annotation = field.annotation if field else None
    return path, known, field
