"""Options stated once: each is a field of a frozen dataclass, with its default, its check and its flags."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from shade_fast.terms.checks import at_least, number, share, whole
from shade_fast.terms.errors import ShadeFastError

Function = TypeVar("Function", bound=Callable[..., Any])
#: Given an option's name and value, returns the value to keep. Raises ShadeFastError.
Check = Callable[[str, Any], Any]


@dataclass(frozen=True)
class Flag:
    """How an option is given on the command line.

    name: without dashes, words apart by hyphens. help: a line, or what returns it. default: as text where `parse`
    reads it; None for the option's own. parse: text to value, raising ShadeFastError or ValueError. choices: the
    values there are. metavar: what stands for the value in the help. many: it may be given again, which makes a list;
    `parse` then may return a list too. const: no value is given, and this is what it means, True for a switch;
    instead_of: the flag of the same option that it stands for. aliases: other names.
    """

    name: str
    help: str | Callable[[], str]
    default: Any = None
    parse: Callable[[str], Any] | None = None
    choices: Callable[[], Sequence[str]] | None = None
    metavar: str | None = None
    many: bool = False
    const: Any = None
    instead_of: str | None = None
    aliases: tuple[str, ...] = ()


def option(
    default: Any,
    *flags: Flag,
    check: Check | None = None,
    join: Callable[..., Any] | None = None,
    incidental: bool = False,
) -> Any:
    """A field of a dataclass of options.

    flags: those that it has on the command line. check: applied to every value. join: the option's value of its flags'
    values, by keyword; not needed for one flag whose value it is. incidental: whether results do not depend on it, so
    that a record does not hold it.
    """
    return dataclasses.field(
        default=default, metadata={"flags": flags, "check": check, "join": join, "incidental": incidental}
    )


def check_options(options: Any) -> None:
    """Apply every field's check; for a dataclass's `__post_init__`."""
    for field in dataclasses.fields(options):
        check = field.metadata["check"]
        if check is not None:
            object.__setattr__(options, field.name, check(field.name, getattr(options, field.name)))


def names_of(kind: type[Any]) -> tuple[str, ...]:
    """The options of a dataclass, in order."""
    return tuple(field.name for field in dataclasses.fields(kind))


def divided(given: Mapping[str, Any], *kinds: type[Any]) -> list[Any]:
    """Keyword arguments as options of each kind. Raises TypeError for a name that none of them has."""
    for name in given:
        if not any(name in names_of(kind) for kind in kinds):
            raise TypeError(f"got an unexpected keyword argument {name!r}")
    return [kind(**{name: given[name] for name in names_of(kind) if name in given}) for kind in kinds]


def given_options(options: Any) -> dict[str, Any]:
    """A dataclass of options as keyword arguments."""
    return {name: getattr(options, name) for name in names_of(type(options))}


def takes(*kinds: type[Any]) -> Callable[[Function], Function]:
    """Show the options of these kinds in place of a function's `**options`, for `help` and editors."""

    def with_signature(function: Function) -> Function:
        own = inspect.signature(function)
        parameters = [part for part in own.parameters.values() if part.kind is not part.VAR_KEYWORD]
        fields = [field for kind in kinds for field in dataclasses.fields(kind)]
        parameters += [
            inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=field.type)
            for field in fields
        ]
        function.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        return function

    return with_signature


def a(kind: type[Any]) -> Check:
    """An object of this class, which has a default of its own."""

    def check(name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise ShadeFastError(f"{name}={value!r}: give a {kind.__name__}, such as {kind()!r}")
        return value

    return check


def one_of(choices: Callable[[], Sequence[str]], shown: str = "{name}={value!r}") -> Check:
    """One of some names. shown: how the error begins."""

    def check(name: str, value: Any) -> Any:
        if value not in choices():
            raise ShadeFastError(f"{shown.format(name=name, value=value)}: give one of {', '.join(choices())}")
        return value

    return check


def a_count(least: int = 1, *, besides: Sequence[Any] = ()) -> Check:
    """A whole number, or one of the values `besides`."""
    return lambda name, value: value if _is_any(value, besides) else at_least(name, value, least)


def a_share(*, besides: Sequence[Any] = ()) -> Check:
    """A number above 0, at most 1, or one of the values `besides`. A whole number stays whole, as records hold it."""

    def check(name: str, value: Any) -> Any:
        if _is_any(value, besides):
            return value
        share(name, value, ", or None" if None in besides else "")
        return number(value) if whole(value) is None else whole(value)

    return check


def _is_any(value: Any, others: Sequence[Any]) -> bool:
    return any(value is other or (isinstance(value, str) and value == other) for other in others)


def of_flags(kind: type[Any], values: Mapping[str, Any]) -> Any:
    """Options from the values of flags, by the flags' names with underscores.

    A flag that a command does not have has no value here, and counts as not given. Raises ShadeFastError.
    """
    given = {}
    for field in dataclasses.fields(kind):
        names = {flag.name.replace("-", "_"): flag for flag in field.metadata["flags"] if flag.instead_of is None}
        if not any(name in values for name in names):
            continue
        parts = {name: values.get(name, _default_of(flag)) for name, flag in names.items()}
        join = field.metadata["join"]
        given[field.name] = next(iter(parts.values())) if join is None else join(**parts)
    return kind(**given)


def _default_of(flag: Flag) -> Any:
    if flag.const is not None:
        return False
    return flag.parse(flag.default) if flag.parse and isinstance(flag.default, str) else flag.default
