"""Schemas: what raises an error and in which words, of files, of dataclasses made in Python and of arguments; what keeps working."""

import copy
import dataclasses
import pickle
import types
from collections.abc import Callable
from typing import Any, Literal

import pytest

from mgen.utils.errors import MgenError
from mgen.utils.registry import Configured, Registry
from mgen.utils.schema import Listed, NonNegative, Positive, Rate, Share, Size, Text, build, checked, schema


@schema
class Inner:
    size: Size = 1
    name: Text = "a"

    def __post_init__(self) -> None:
        if self.size == 7:
            raise MgenError("size 7 is taken: use 8")


@schema
class Other:
    width: Size
    kind: Literal["x", "y"] = "x"


@schema
class Longer(Inner):
    more: Size = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.more == self.size:
            raise MgenError("more and size are the same")


@schema
class Outer:
    inner: Inner = Inner()
    maybe: Inner | None = None
    either: Inner | Other | None = None
    choice: Literal["auto", "none"] | Size | Inner = "auto"
    sizes: Listed[tuple[Size, ...]] = ()
    pair: tuple[int, int] | None = None
    by_name: dict[str, Inner] = dataclasses.field(default_factory=dict)
    several: tuple[Inner, ...] = ()
    anything: Any = None
    rate: Rate = 0.5
    share: Share = 0.5
    positive: Positive = 1.0
    low: NonNegative = 0.0
    flag: bool = False
    curve: float | tuple[float, ...] = 1.0


@schema(extra=True)
class Foreign:
    size: Size


WRONG = [
    ({"inner": 5}, "'top.inner' takes a mapping, got 5"),
    ({"inner": None}, "'top.inner' takes a mapping, got None"),
    ({"inner": {"size": "32"}}, "'top.inner.size' takes a whole number, got '32'"),
    ({"inner": {"size": 32.0}}, "'top.inner.size' takes a whole number, got 32.0"),
    ({"inner": {"size": True}}, "'top.inner.size' takes a whole number, got True"),
    ({"inner": {"size": None}}, "'top.inner.size' takes a whole number, got None"),
    ({"inner": {"size": [32]}}, "'top.inner.size' takes a whole number, got [32]"),
    ({"inner": {"size": 0}}, "'top.inner.size' is 0: allowed is at least 1"),
    ({"inner": {"size": 2**21}}, "'top.inner.size' is 2097152: allowed is at most 1048576"),
    ({"inner": {"size": 10**30}}, "a number of at most 64 bits is needed"),
    ({"inner": {"size": 7}}, "top.inner: size 7 is taken: use 8"),
    ({"inner": {"name": ""}}, "'top.inner.name' takes a text that is not empty, got ''"),
    ({"inner": {"name": "\ud800"}}, "'top.inner.name' is '\\ud800': half a character"),
    ({"inner": {"sise": 5}}, "unknown key 'top.inner.sise': did you mean 'size'? Valid: name, size"),
    ({"iner": {}}, "unknown key 'top.iner': did you mean 'inner'?"),
    ({"maybe": {"size": 7}}, "top.maybe: size 7 is taken"),
    ({"maybe": 3}, "'top.maybe' takes a mapping, got 3"),
    ({"either": {"width": 0}}, "'top.either.width' is 0: allowed is at least 1"),
    ({"either": {"size": 0}}, "'top.either.size' is 0: allowed is at least 1"),
    ({"either": {"kind": "x"}}, "missing key 'top.either.width'"),
    ({"either": {"widht": 1}}, "unknown key 'top.either.widht': did you mean 'width'?"),
    ({"either": 3}, "'top.either' takes a mapping, got 3"),
    (
        {"choice": "atuo"},
        "'top.choice' is 'atuo': did you mean 'auto'? Valid: auto, none, or a whole number, or a mapping",
    ),
    ({"choice": None}, "'top.choice' takes auto or none or a whole number or a mapping, got None"),
    ({"choice": 0}, "'top.choice' is 0: allowed is at least 1"),
    ({"choice": {"size": "q"}}, "'top.choice.size' takes a whole number, got 'q'"),
    ({"choice": {"sise": 1}}, "unknown key 'top.choice.sise': did you mean 'size'?"),
    ({"sizes": 5}, "'top.sizes' takes a list, got 5"),
    ({"sizes": {}}, "'top.sizes' takes a list, got {}"),
    ({"sizes": [1, "2"]}, "'top.sizes.1' takes a whole number, got '2'"),
    ({"pair": [1]}, "'top.pair' takes more values: got [1]"),
    ({"pair": [1, 2, 3]}, "'top.pair' takes 2 values, got 3: [1, 2, 3]"),
    ({"pair": "12"}, "'top.pair' takes a list, got '12'"),
    ({"by_name": {"k": {"size": -1}}}, "'top.by_name.k.size' is -1: allowed is at least 1"),
    ({"by_name": {"k": {"sise": 1}}}, "unknown key 'top.by_name.k.sise'"),
    ({"by_name": [1]}, "'top.by_name' takes a mapping, got [1]"),
    ({"several": [{}, {"size": 7}]}, "top.several.1: size 7 is taken"),
    ({"several": [{}, 5]}, "'top.several.1' takes a mapping, got 5"),
    ({"rate": 1}, "'top.rate' is 1: allowed is less than 1"),
    ({"rate": -0.1}, "'top.rate' is -0.1: allowed is at least 0"),
    ({"share": 1.5}, "'top.share' is 1.5: allowed is at most 1"),
    ({"positive": 0}, "'top.positive' is 0: allowed is more than 0"),
    ({"positive": "1"}, "'top.positive' takes a number, got '1'"),
    ({"positive": True}, "'top.positive' takes a number, got True"),
    ({"positive": float("nan")}, "'top.positive' is nan: a finite number is needed"),
    ({"low": float("inf")}, "'top.low' is inf: a finite number is needed"),
    ({"flag": 1}, "'top.flag' takes true or false, got 1"),
    ({"flag": "true"}, "'top.flag' takes true or false, got 'true'"),
    ({"curve": "a"}, "'top.curve' takes a number or a list, got 'a'"),
    ({"curve": [1, "a"]}, "'top.curve.1' takes a number, got 'a'"),
    ({5: 1}, "key 5 in 'top' is no text"),
    ({"anything": object()}, "'top.anything' is a object"),
]


@pytest.mark.parametrize("data, words", WRONG, ids=lambda value: None)
def test_a_wrong_value_is_told_with_its_key(data: dict[str, Any], words: str) -> None:
    with pytest.raises(MgenError) as error:
        build(Outer, data, "top.")
    assert words in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("data", [None, 5, "a", [], [1], True])
def test_what_is_no_mapping_is_told(data: Any) -> None:
    with pytest.raises(MgenError, match="top is .*: expected a mapping"):
        build(Outer, data, "top.")


def test_the_file_stands_in_front_of_the_key() -> None:
    with pytest.raises(MgenError, match=r"'a/config.json: inner.size' takes a whole number"):
        build(Outer, {"inner": {"size": "1"}}, "a/config.json: ")
    with pytest.raises(MgenError, match=r"^a/config.json: inner: size 7 is taken"):
        build(Outer, {"inner": {"size": 7}}, "a/config.json: ")
    with pytest.raises(MgenError, match=r"^a/config.json: size 7 is taken"):
        build(Inner, {"size": 7}, "a/config.json: ")


def test_right_values_become_what_the_annotations_say() -> None:
    made = build(Outer, types.MappingProxyType({"inner": types.MappingProxyType({"size": 3})}))
    assert made.inner == Inner(size=3)
    made = build(Outer, {"sizes": [1, 2], "pair": [3, 4], "positive": 2, "curve": [1, 2.5], "anything": {"a": [1]}})
    assert made.sizes == (1, 2) and made.pair == (3, 4) and made.curve == (1, 2.5) and made.anything == {"a": [1]}
    assert isinstance(made.positive, float)
    assert build(Outer, {"choice": 4}).choice == 4 and build(Outer, {"choice": {"size": 4}}).choice == Inner(size=4)
    assert build(Outer, {"either": {"width": 4}}).either == Other(width=4)
    assert build(Foreign, {"size": 4, "whatever": [1]}).size == 4


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: Inner(size="3"), "'Inner.size' takes a whole number, got '3'"),  # type: ignore[arg-type]
        (lambda: Inner(size=10**400), "'Inner.size' is a number of about 401 digits: allowed is at most 1048576"),
        (lambda: Inner(sise=3), "unknown key 'Inner.sise': did you mean 'size'?"),  # type: ignore[call-arg]
        (lambda: Inner(5), "Inner takes arguments by name, got 5"),  # type: ignore[call-arg]
        (lambda: Inner(size=7), "Inner: size 7 is taken: use 8"),
        (lambda: Outer(positive=10**400), "'Outer.positive' takes a number, got a number of about 401 digits"),
        (lambda: Outer(positive=float("nan")), "'Outer.positive' takes a finite number, got nan"),
        (lambda: Outer(inner={"size": 3}), "'Outer.inner' takes an instance of Inner"),  # type: ignore[arg-type]
        (lambda: Outer(several=[Inner()]), "'Outer.several' takes a tuple, got "),  # type: ignore[arg-type]
        (lambda: Longer(size=7), "Longer: size 7 is taken"),
        (lambda: Longer(size=2), "Longer: more and size are the same"),
        (lambda: Longer(more=0), "'Longer.more' is 0"),
        (lambda: dataclasses.replace(Inner(), size=7), "size 7 is taken"),
        (lambda: Foreign(), "missing key 'Foreign.size'"),  # type: ignore[call-arg]
    ],
)
def test_a_dataclass_is_checked_when_it_is_made(make: Callable[[], object], words: str) -> None:
    with pytest.raises(MgenError) as error:
        make()
    assert words in str(error.value)


def test_a_schema_is_a_dataclass() -> None:
    made = Outer(inner=Longer(size=3), sizes=[1, 2])  # type: ignore[arg-type]
    assert made.sizes == (1, 2) and isinstance(made.inner, Longer)
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made
    assert dataclasses.replace(made, flag=True).flag and not made.flag
    assert build(Outer, {**dataclasses.asdict(made), "inner": {"size": 3}}).sizes == (1, 2)
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.flag = True  # type: ignore[misc]
    assert hash(Inner()) == hash(Inner())


@checked
def function(a: Size, b: Text = "x", *rest: int, c: Listed[tuple[int, ...]] = (), **more: float) -> int:
    return a


class Made:
    @checked
    def __init__(self, *, n: Size, kind: Literal["a", "b,c"] = "a") -> None:
        self.n = n


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: function("1"), "'a' takes a whole number, got '1'"),  # type: ignore[arg-type]
        (lambda: function(1, ""), "'b' takes a text that is not empty, got ''"),
        (lambda: function(1, "a", 1, "x"), "'rest' takes a whole number, got 'x'"),  # type: ignore[arg-type]
        (lambda: function(1, c=["x"]), "'c.0' takes a whole number, got 'x'"),  # type: ignore[arg-type,list-item]
        (lambda: function(1, zz="a"), "'zz' takes a number, got 'a'"),  # type: ignore[arg-type]
        (lambda: function(), "missing key 'a'"),  # type: ignore[call-arg]
        (lambda: Made(n="x"), "'n' takes a whole number, got 'x'"),  # type: ignore[arg-type]
        (lambda: Made(n=1, kind="c"), "'kind' is 'c': did you mean 'b,c'? Valid: a, b,c"),  # type: ignore[arg-type]
        (lambda: Made(N=1), "unknown key 'N': Valid: kind, n"),  # type: ignore[call-arg]
        (lambda: Made(1), "Made takes arguments by name, got 1"),  # type: ignore[call-arg,misc]
    ],
)
def test_arguments_are_checked(call: Callable[[], object], words: str) -> None:
    with pytest.raises(MgenError) as error:
        call()
    assert words in str(error.value)


def test_right_arguments_pass() -> None:
    assert function(1, "a", 2, c=[3], d=4.0) == 1 and Made(n=3, kind="b,c").n == 3  # type: ignore[arg-type]


def test_settings_of_a_plain_dataclass_are_checked_too() -> None:
    """Whoever registers a part with one gets a schema of it."""

    @dataclasses.dataclass(frozen=True)
    class Plain:
        size: int = 3

    registry: Registry[Configured] = Registry("thing", "mgen.utils.registry")

    @registry.register("plain", Plain)
    class Thing(Configured):
        def __init__(self, config: Plain) -> None:
            self.config = config

    made = registry.configure({"type": "plain", "size": 4}, "thing").build()
    assert isinstance(made.config, Plain) and made.config.size == 4 and made.settings == {"type": "plain", "size": 4}
    for settings, words in (({"size": "4"}, "'thing.size' takes a whole number"), ({"sise": 4}, "did you mean 'size'")):
        with pytest.raises(MgenError, match=words):
            registry.configure({"type": "plain", **settings}, "thing")
