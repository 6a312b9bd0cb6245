"""Estimates before work: what the machine has, and what is said about sizes beyond it."""

from pathlib import Path

import pytest

from mgen.utils import limits
from mgen.utils.errors import MgenError
from mgen.utils.limits import available_memory, check_disk, check_memory, check_time, in_days, in_gb


def test_what_fits_is_let_through(tmp_path: Path) -> None:
    assert available_memory() > 10**8
    check_memory(10**6, "a small thing", "use less")
    check_disk(tmp_path / "not" / "there" / "yet", 10**6, "a small file")
    check_time(7 * 24 * 3600, "a week", "wait")


@pytest.mark.parametrize("need", [1e15, 10**15, 10**400, float("inf")])
def test_what_does_not_fit_is_refused_with_the_number(need: float, tmp_path: Path) -> None:
    with pytest.raises(MgenError, match=r"a batch of 7: this needs .* GB of memory, .* GB are free; use a smaller one"):
        check_memory(need, "a batch of 7", "use a smaller one")
    with pytest.raises(MgenError, match=r"7 images: this needs .* GB of disk, .* GB are free at .*; free some"):
        check_disk(tmp_path / "out", need, "7 images")
    with pytest.raises(MgenError, match=r"a run: this takes at least .* years; use fewer steps"):
        check_time(need, "a run", "use fewer steps")


def test_numbers_are_short() -> None:
    assert [in_gb(x) for x in (1.5e9, 25e12, 3e7, 10**400)] == ["1.5 GB", "25,000 GB", "30 MB", "1e+300 GB"]
    assert [in_days(x) for x in (3600 * 36, 3e10, 10**400)] == ["1.5 days", "951 years", "1e+300 years"]


@pytest.mark.parametrize(
    "kinds, files",
    [
        (
            "memory",
            {"memory.limit_in_bytes": "1000", "memory.usage_in_bytes": "700", "memory.stat": "total_inactive_file 50"},
        ),
        ("", {"memory.max": "1000", "memory.current": "700", "memory.stat": "anon 4\ninactive_file 50"}),
    ],
)
def test_a_container_counts(kinds: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of this process's group or of one above it, less what is used, but for files that can be dropped."""
    (tmp_path / kinds / "a" / "b").mkdir(parents=True)
    for name, text in files.items():
        (tmp_path / kinds / "a" / name).write_text(text + "\n")
    monkeypatch.setattr(limits, "_CGROUPS", tmp_path)
    monkeypatch.setattr(limits, "_OWN_CGROUPS", tmp_path / "cgroup")
    (tmp_path / "cgroup").write_text(f"3:cpu:/x\n4:{kinds}:/a/b\n")
    assert available_memory() == 350
    with pytest.raises(MgenError, match="this needs 0.0004 MB of memory, 0.00035 MB are free"):
        check_memory(400, "it", "use less")


def test_ulimit_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits.resource, "getrlimit", lambda _: (10**3, 10**3))
    assert available_memory() == 0
