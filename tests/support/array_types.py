"""Check the array annotations of `fusioner` in every call of a test; `addopts` in pyproject.toml installs it.

jaxtyping compares the letters of one call with each other. beartype, which usually goes with it, refuses names that are
imported for annotations alone.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from types import UnionType
from typing import Any, Union, get_args, get_origin

from jaxtyping import AbstractArray


def check(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function with arguments and result compared to annotations that hold an array; TypeError otherwise."""
    hints = {name: kind for name, kind in getattr(function, "__annotations__", {}).items() if _has_array(kind)}
    if inspect.isgeneratorfunction(function):
        hints.pop("return", None)
    if not hints or not inspect.isfunction(function):
        return function
    signature = inspect.signature(function)

    @wraps(function)
    def checked(*args: Any, **kwargs: Any) -> Any:
        values = signature.bind(*args, **kwargs).arguments
        for name in values.keys() & hints.keys():
            _require(values[name], hints[name], f"argument {name} of {function.__qualname__}")
        result = function(*args, **kwargs)
        if "return" in hints:
            _require(result, hints["return"], f"result of {function.__qualname__}")
        return result

    return checked


def _has_array(kind: Any) -> bool:
    return _is_array(kind) or any(map(_has_array, get_args(kind)))


def _is_array(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, AbstractArray)


def _require(value: Any, kind: Any, what: str) -> None:
    if not _fits(value, kind):
        found = [f"{getattr(one, 'shape', '')} {getattr(one, 'dtype', type(one))}" for one in _parts(value)]
        raise TypeError(f"{what} is {'; '.join(found)}, not {kind}")


def _parts(value: Any) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _fits(value: Any, kind: Any) -> bool:
    origin, parts = get_origin(kind), get_args(kind)
    if _is_array(kind):
        return isinstance(value, kind)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in parts)
    if origin is tuple and isinstance(value, tuple) and parts[1:] != (...,):
        return len(value) == len(parts) and all(map(_fits, value, parts))
    if isinstance(origin, type) and issubclass(origin, Sequence) and isinstance(value, Sequence):
        return all(_fits(one, parts[0]) for one in value)
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return all(_fits(one, parts[1]) for one in value.values())
    return not isinstance(kind, type) or kind in (int, float) or isinstance(value, kind)
