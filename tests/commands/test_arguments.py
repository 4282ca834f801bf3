"""What the command line says beside results: warnings as sentences."""

import warnings

from dne_lab.commands.arguments import warned_in_words


def test_our_warnings_are_sentences_and_others_say_where() -> None:
    ours, others = "/x/dne_lab/data/stream.py", "/x/torch/nn.py"
    said = "dne-lab: 2 images were left out.\n"
    with warned_in_words():
        assert warnings.formatwarning("2 images were left out.", UserWarning, ours, 7) == said
        assert "nn.py:7" in warnings.formatwarning("x", UserWarning, others, 7)
        assert "stream.py:7" in warnings.formatwarning("x", DeprecationWarning, ours, 7)
    assert "stream.py:7" in warnings.formatwarning("x", UserWarning, ours, 7)
