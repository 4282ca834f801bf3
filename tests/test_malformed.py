"""A thousand malformed inputs: each ends in a sentence or in what is right, and changes no file."""

from pathlib import Path

from malformed import attempt


def test_whatever_is_read_ends_in_a_sentence_or_is_right(tmp_path: Path) -> None:
    ends, faults = attempt(tmp_path, 1000, seed=0)
    assert not faults, "\n".join(faults)
    assert sum(sum(counts.values()) for counts in ends.values()) == 1000
    for kind, counts in ends.items():
        assert counts["told"], f"nothing wrong was found in any {kind}"
