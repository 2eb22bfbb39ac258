"""Parameters as dataclass fields: help, unit, choices, bounds and label stand with the default.

The command line, the notebooks, the workflow, the run record and the table columns derive from
these fields. A value is read and checked here, wherever it comes from. The parameters themselves
are the fields of `config.Experiment` (one run) and `grid.Grid` (a campaign): add one there.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


class ConfigError(ValueError):
    """A parameter outside what is allowed; the message names value, choices and remedy."""

    def _render_traceback_(self) -> list[str]:
        """A notebook shows this line alone."""
        return [str(self)]


@dataclass(frozen=True, kw_only=True)
class About:
    """Everything about a parameter besides its name, its type and its default."""

    help: str
    unit: str = ""
    # The allowed names; empty: any. Arms like `freeze/stock` are checked name by name.
    choices: tuple[str, ...] = ()
    at_least: float | None = None  # bounds, included
    at_most: float | None = None
    label: str = ""  # format of the value in the label of an arm; empty: never part of it
    load: bool = False  # whether it is part of a rank's work, whatever the number of ranks


JsonObject = str
"""Text of a JSON object. As text it can be compared, hashed and shown in a table."""

Parameter = dataclasses.Field  # one that `parameter` made


def parameter(default: Any, help: str, **about: Any) -> Any:
    """A dataclass field with everything `About` it."""
    return dataclasses.field(default=default, metadata={"about": About(help=help, **about)})


def parameters(owner: Any) -> dict[str, Parameter[Any]]:
    """The parameters of a dataclass by name, in their order."""
    return {field.name: field for field in dataclasses.fields(owner)}


def about(field: Parameter[Any]) -> About:
    """The description given to `parameter`."""
    found: About = field.metadata["about"]
    return found


def described(field: Parameter[Any]) -> str:
    """Help, choices and unit in one line."""
    said = about(field)
    choices = f": {', '.join(said.choices)}" if said.choices else ""
    return f"{said.help}{choices}" + (f" [{said.unit}]" if said.unit else "")


def read(field: Parameter[Any], value: Any) -> Any:
    """The value of a parameter from a command line, a notebook or JSON.

    A list may be given as text: `512,1024`, or as papermill passes it, `[512, 1024]`.

    Raises
    ------
    ConfigError
        If the value is of another type, or not allowed.
    """
    try:
        made = READERS[str(field.type)][1](value)
    except (TypeError, ValueError):
        raise ConfigError(f"{field.name} {value!r}: allowed is {allowed(field)}") from None
    check(field, made)
    return made


def check(field: Parameter[Any], value: Any) -> None:
    """Check a value of the right type against choices and bounds.

    Raises
    ------
    ConfigError
        If it is outside.
    """
    said = about(field)
    each = value if isinstance(value, tuple) else (value,)
    if len(set(each)) < len(each) and str(field.type).endswith("...]"):
        raise ConfigError(f"{field.name} {as_text(value)}: name each once")
    for one in each:
        unknown = [name for name in str(one).split("/") if name not in said.choices]
        if said.choices and unknown:
            raise ConfigError(
                f"{field.name} {unknown[0]!r}: choose one of {', '.join(said.choices)}"
            )
        low, high = said.at_least, said.at_most
        # Not `one < low`: NaN is in no range.
        if one is not None and not ((low is None or one >= low) and (high is None or one <= high)):
            raise ConfigError(f"{field.name} {one}: allowed is {allowed(field)}")


def allowed(field: Parameter[Any]) -> str:
    """The allowed values, in words."""
    said = about(field)
    kind, _ = READERS[str(field.type)]
    bounds = [f"from {said.at_least:g}"] if said.at_least is not None else []
    bounds += [f"to {said.at_most:g}"] if said.at_most is not None else []
    choices = [f"out of {', '.join(said.choices)}"] if said.choices else []
    return " ".join([kind, *bounds, *choices]) + (f" ({said.unit})" if said.unit else "")


def as_text(value: Any) -> Any:
    """A value as a command line gives it: `16,64` for a tuple, None for none."""
    return ",".join(map(str, value)) or None if isinstance(value, tuple) else value


def read_all(known: Mapping[str, Parameter[Any]], values: Mapping[str, Any]) -> dict[str, Any]:
    """`read` for each value.

    Raises
    ------
    ConfigError
        If a name is unknown or a value is not allowed.
    """
    if unknown := [name for name in values if name not in known]:
        raise ConfigError(f"unknown parameter {unknown[0]!r}: known are {', '.join(known)}")
    return {name: read(known[name], value) for name, value in values.items()}


# --- readers, by the annotation of the field -------------------------------------------------


def _exactly(kind: type) -> Callable[[Any], Any]:
    def read_one(value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError
        return value.strip() if isinstance(value, str) else value

    return read_one


def _number(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    return float(value)


def _whole(value: Any) -> int:
    number = _number(value)
    if number != int(number):
        raise ValueError
    return int(number)


def _several(one: Callable[[Any], Any], number: int | None = None) -> Callable[[Any], Any]:
    def read_several(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            parts = value.strip("[()] ").split(",")
            value = [part.strip(" '\"") for part in parts if part.strip()]
        made = tuple(map(one, value if isinstance(value, list | tuple) else [value]))
        if number not in (None, len(made)):
            raise ValueError
        return made

    return read_several


def _object(value: Any) -> str:
    """The text of a JSON object, the same for equal objects."""
    made = json.loads(value) if isinstance(value, str) else value
    if not isinstance(made, dict):
        raise TypeError
    return json.dumps(made, sort_keys=True)


READERS: Mapping[str, tuple[str, Callable[[Any], Any]]] = {
    "bool": ("True or False", _exactly(bool)),
    "str": ("a text", _exactly(str)),
    "JsonObject": ("a JSON object", _object),
    "int": ("a whole number", _whole),
    "int | None": ("a whole number", lambda value: None if value is None else _whole(value)),
    "float": ("a number", _number),
    "tuple[int, int]": ("two whole numbers like 16,64", _several(_whole, 2)),
    "tuple[int, ...]": ("whole numbers like 512,1024", _several(_whole)),
    "tuple[str, ...]": ("different names", _several(_exactly(str))),
}
