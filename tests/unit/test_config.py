"""Settings files and plain values: what YAML and JSON can hide is told in one line, in little time and memory."""

import os
from pathlib import Path
from typing import Any

import pytest

from mgen.utils.config import MOST_BYTES, apply_overrides, parse_yaml, read_config
from mgen.utils.errors import MgenError, one_line, shown
from mgen.utils.plain import check_plain
from mgen.utils.reading import parse_json, read_json

FULL = MOST_BYTES
ALIASES = list(zip("abcdefgh", "bcdefghi"))
YAML = {
    "alias bomb": ("a: &a [1,1,1,1,1,1]\n" + "".join(f"{b}: &{b} [{f'*{a},' * 9}]\n" for a, b in ALIASES), "values"),
    "list of itself": ("&a [" + "*a," * (FULL // 3 - 4) + "]", "values"),
    "one list of itself": ("&a [*a]", "levels deep"),
    "deep lists": ("[" * FULL, "deep"),
    "deep lists, closed": ("[" * 200 + "]" * 200, "levels deep"),
    "deep blocks": ("- " * (FULL // 2), "deep"),
    "deep mappings": ("{a: " * (FULL // 4), "deep"),
    "question marks": ("? " * (FULL // 2), "deep"),
    "many digits": ("9" * 5000, "5000 digits"),
    "64 bits": ("18446744073709551616", "64 bits"),
    "hexadecimal": ("0x" + "f" * 5000, "5002 digits"),
    "not a number": (".nan", "finite"),
    "infinity": ("[1, -.inf]", "x: '1' is -inf"),
    "too large": ("1e400", "finite"),
    "key of a number": ("1: a", "key 1 in 'x' is no text"),
    "key of null": ("~: a", "key None"),
    "key of a list": ("? [a]\n: 1", "unhashable"),
    "key twice": ("a: 1\nb: 2\na: 3", "key 'a' stands twice in a mapping, line 3"),
    "merge key by tag": ("a: &a {x: 1}\nb: {!!merge m: *a}", "tag"),
    "bool": ("!!bool maybe", "maybe"),
    "int": ("!!int abc", "abc"),
    "empty int": ("!!int ''", "int"),
    "float": ("!!float abc", "abc"),
    "date": ("!!timestamp 2020-13-45", "tag"),
    "set": ("!!set {a, b}", "tag"),
    "pairs": ("!!pairs [a: 1]", "tag"),
    "bytes": ("!!binary aGk=", "tag"),
    "object": ("!!python/object/apply:os.system [ls]", "tag"),
    "mapping of a list": ("!!map [1]", "expected a mapping"),
    "half a character": (r'"\ud800"', "half a character"),
    "null character": (r'"a\0b"', "null character"),
    "escape": ("a: \x1b[31m", "special characters"),
    "two documents": ("a: 1\n---\nb: 2", "single document"),
    "tab": ("a:\n\t- 1", "token"),
    "unknown alias": ("*nobody", "alias"),
}


@pytest.mark.parametrize("name", YAML)
def test_yaml_that_is_refused(name: str) -> None:
    text, words = YAML[name]
    with pytest.raises(MgenError, match="^[^\n]{10,400}$") as caught:
        parse_yaml(text, "x")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-1.5E+3", -1500.0),
        ("5.", 5.0),
        (".5", 0.5),
        ("010", 10),
        ("1_000", 1000),
        ("0x1f", 31),
        ("1:30", "1:30"),
        ("2020-01-01", "2020-01-01"),
        ("1\u0663e5", "1\u0663e5"),
        ("²", "²"),
        ("<<: 1", {"<<": 1}),
        ("~", None),
        ("", None),
        ("yes", True),
        ("\ufeffa: 1", {"a": 1}),
        ("é: 🙂", {"é": "🙂"}),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_yaml_values(text: str, value: object) -> None:
    assert parse_yaml(text, "x") == value and type(parse_yaml(text, "x")) is type(value)


JSON = {
    "deep": ("[" * 100_000, "deep"),
    "deep, closed": ("[" * 100 + "]" * 100, "levels deep"),
    "deep objects": ('{"a":' * 100_000, "deep"),
    "not a number": ('{"a": NaN}', "NaN"),
    "infinity": ("[-Infinity]", "-Infinity"),
    "too large": ("[1e400]", "x: '0' is inf"),
    "many digits": ("9" * 5000, "4300 digits"),
    "64 bits": ('{"a": {"b": 18446744073709551616}}', "x: 'a.b' is 18446744073709551616"),
    "half a character": (r'{"a": "\ud800"}', r"x: 'a' is '\ud800': half a character"),
    "half a character in a key": (r'{"\udfff": 1}', "half a character"),
    "null character": (r'{"a": "\u0000"}', "null character"),
    "key twice": ('{"a": 1, "b": 2, "a": 1}', "key 'a' stands twice"),
    "empty": ("", "not valid JSON"),
    "two": ("1 2", "Extra data"),
    "cut": ('{"a": ', "not valid JSON"),
}


@pytest.mark.parametrize("name", JSON)
def test_json_that_is_refused(name: str) -> None:
    text, words = JSON[name]
    with pytest.raises(MgenError, match="^[^\n]{10,400}$") as caught:
        parse_json(text, "x")
    assert words in str(caught.value)


def test_plain_values_are_bounded_and_named() -> None:
    check_plain({"a": [1, 2.5, "é", None, True, (1, 2)], "b": {}})
    bad: list[tuple[Any, str]] = [
        ({"a": {1, 2}}, "'f.a' is a set"),
        ({"a": [object()]}, "'f.a.0' is a object"),
        ({"a": {b"k": 1}}, "key b'k' in 'f.a' is no text"),
        ({"a": 10**5000}, "'f.a' is a number of about 5001 digits"),
        (float("nan"), "'f' is nan"),
    ]
    for value, words in bad:
        with pytest.raises(MgenError, match="^" + words.replace("(", r"\(")):
            check_plain(value, "f.")
    with pytest.raises(MgenError, match=r"^a\.yaml: 'b\.0' is nan"):  # what names a file stays outside of the quotes
        check_plain({"b": [float("nan")]}, "a.yaml: ")
    with pytest.raises(MgenError, match="f holds more than 5 values"):
        check_plain([1, 2, 3, 4, 5], "f: ", most=5)
    shared = [1] * 100
    with pytest.raises(MgenError, match="more than 1,000 values"):
        check_plain([shared] * 11, most=1000)


def test_extends(tmp_path: Path) -> None:
    def write(name: str, text: str) -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    write("base.yaml", "a: {x: 1, y: 2}\nb: 1\n")
    assert read_config(write("c.yaml", "extends: base.yaml\na: {y: 3}\n")) == {"a": {"x": 1, "y": 3}, "b": 1}
    (tmp_path / "link.yaml").symlink_to("self.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    write("two.yaml", "extends: one.yaml")
    for i in range(30):
        write(f"n{i}.yaml", f"extends: n{i + 1}.yaml")
    files = {
        "self.yaml": ("extends: link.yaml", "extends itself"),
        "one.yaml": ("extends: two.yaml", "extends itself, through one.yaml and two.yaml"),
        "chain.yaml": ("extends: n0.yaml", "20 are allowed"),
        "list.yaml": ("extends: [base.yaml]", "extends is \\['base.yaml'\\]"),
        "number.yaml": ("extends: 5", "extends is 5"),
        "true.yaml": ("extends: true", "extends is True"),
        "null.yaml": ("extends: ~", "extends is None"),
        "empty.yaml": ("extends: ''", "extends is ''"),
        "device.yaml": ("extends: /dev/zero", "no regular file"),
        "of_pipe.yaml": ("extends: pipe.yaml", "no regular file"),
        "of_loop.yaml": ("extends: loop.yaml", "loop.yaml .*symbolic links"),
        "folder.yaml": ("extends: .", "a folder"),
        "missing.yaml": ("extends: nobody.yaml", "no such file"),
        "long.yaml": (f"extends: {'a' * 300}", "too long"),
        "below.yaml": ("extends: base.yaml/x", "Not a directory"),
        "scalar.yaml": ("5", "holds no settings"),
        "large.yaml": ("#" * (FULL + 1), "larger than"),
    }
    for name, (text, words) in files.items():
        with pytest.raises(MgenError, match=words):
            read_config(write(name, text))


def test_encodings(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_bytes("a: é".encode("utf-8-sig"))
    assert read_config(file) == {"a": "é"}
    (tmp_path / "c.json").write_bytes('{"a": "é"}'.encode("utf-8-sig"))
    assert read_json(tmp_path / "c.json") == {"a": "é"}
    for encoding in ("utf-16", "latin-1"):
        file.write_bytes("a: é".encode(encoding))
        with pytest.raises(MgenError, match="not text in UTF-8.*save it as UTF-8"):
            read_config(file)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("a", "form key.sub=value"),
        ("=1", "form key.sub=value"),
        ("a..b=1", "form key.sub=value"),
        (" .a=1", "form key.sub=value"),
        ("a." * 20_000 + "a=1", "levels deep"),
        ("a=" + "[" * 5000, "nested too deeply"),
        ("a=!!int x", "not valid YAML"),
        ("a=" + "1" * 5000, "5000 digits"),
        ("a=.inf", "finite"),
    ],
)
def test_overrides_that_are_refused(override: str, words: str) -> None:
    with pytest.raises(MgenError, match=words):
        apply_overrides({}, [override])
    with pytest.raises(MgenError, match="given twice"):
        apply_overrides({}, ["a.b=1", "a.b=2"])


def test_messages_are_bounded_and_in_one_line() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    import torch

    for value in (10**6000, [10**6000], {"a": "x" * 10**6}, "a\n" * 100, Broken(), torch.zeros(50, 50), [[[[[1]]]]]):
        assert len(shown(value)) < 200 and "\n" not in shown(value)
    assert shown(torch.zeros(2, 3)) == "a Tensor of shape (2, 3) and type torch.float32"
    assert shown(True) == "True" and shown(2**60) == str(2**60)
    assert str(MgenError("a\n  b\x1b[31m \udcff é")) == "a b\\x1b[31m \\udcff é"
    assert len(one_line("x" * 10**6)) < 2000
