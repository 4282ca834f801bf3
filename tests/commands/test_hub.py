"""Models pushed to and opened from a server on this machine that answers the real client as the Hub does."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import stand_in_hub
import torch
import yaml
from shell import Here, run_folder, sets

import dne_lab as lab
from dne_lab.commands import hub
from dne_lab.core.errors import LabError
from dne_lab.measure.record import Record


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[stand_in_hub.StandIn]:
    """The server, with a cache of the client's own below the test's folder."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with stand_in_hub.served() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        yield found


def test_a_model_is_pushed_with_its_card_and_opened_again(
    server: stand_in_hub.StandIn, here: Here, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert here("run", "dne", *sets(data__validation=0.9), "--device", "cpu").code == 0
    folder = run_folder(tmp_path / "runs", "dne")
    done = here("push", folder, "me/dne-digits")
    assert done.code == 0 and "lab.open('hf://me/dne-digits')" in done.out, done.err
    files = server.repositories["me/dne-digits"]
    assert set(files) == {"model.safetensors", "record.json", "README.md"} and server.private["me/dne-digits"]
    record = Record.from_json(folder / "record.json")
    assert json.loads(files["record.json"]) == record.content()

    _, front, body = files["README.md"].decode().split("---\n", 2)
    head = yaml.safe_load(front)
    (result,) = head["model-index"][0]["results"]
    assert {m["name"]: m["value"] for m in result["metrics"]} == {
        "LA": round(record.LA or 0, 2),
        "AA": round(record.AA or 0, 2),
    }
    assert head["library_name"] == "dne-lab" and f"{record.LA:.2f}%" in body and record.config_sha256 in body
    assert str(tmp_path) not in files["README.md"].decode() and str(tmp_path).encode() not in files["model.safetensors"]

    run, mine = lab.open("hf://me/dne-digits", progress=False), lab.open(folder, progress=False)
    assert run.record == record and run.finished
    images = mine.stream.test_images(4).images
    assert torch.equal(run.model(images).logits, mine.model(images).logits)
    assert not any("README" in path or ".py" in path for path in server.asked if path.startswith(("GET", "HEAD")))

    again = here("push", folder, "me/dne-digits")
    assert again.code == 2 and "me/dne-digits exists" in again.err
    assert (
        here("push", folder, "me/dne-digits", "--force", "--public").code == 0 and not server.private["me/dne-digits"]
    )

    server.refuse = 403  # no right to write, after that no connection at all
    assert "the Hub refused (403). Log in with a token" in here("push", folder, "me/dne-digits", "--force").err
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{nobody.getsockname()[1]}")
        gone = here("push", folder, "me/dne-digits", "--force")
        assert gone.code == 2 and "me/dne-digits: the Hub cannot be reached" in gone.err, gone.err
        assert lab.open("hf://me/dne-digits", progress=False).record == record  # from the client's cache
        with pytest.raises(LabError, match="me/never-fetched: the Hub cannot be reached from here, and no copy"):
            lab.open("hf://me/never-fetched")


def test_what_is_no_model_of_ours_is_refused(server: stand_in_hub.StandIn, here: Here, tmp_path: Path) -> None:
    from invented import record

    record().write(tmp_path / "record.json")
    good = (tmp_path / "record.json").read_bytes()
    server.repositories = {
        "a/empty": {"pytorch_model.bin": b"pickle"},
        "a/half": {"record.json": good},
        "a/spoiled": {"record.json": good.replace(b'"seed": 0', b'"seed": 1'), "model.safetensors": b"x"},
        "a/pickled": {"record.json": good, "model.safetensors": b"\x80\x04\x95rest of a pickle" * 9},
    }
    for name, said in (
        ("a/none", "a/none does not exist on the Hub, or is private"),
        ("a/empty", "a/empty is no model that `dne-lab push` wrote"),
        ("a/half", "a/half is no model that `dne-lab push` wrote"),
        ("a/spoiled", "is damaged"),
        ("a/pickled", r"model\.safetensors"),
    ):
        with pytest.raises(LabError, match=said):
            lab.open(f"hf://{name}")
    assert not any("pytorch_model" in path for path in server.asked)
    assert (
        "is not finished" in here("push", tmp_path, "a/new").err or "config.json" in here("push", tmp_path, "a/new").err
    )
    assert "a/new" not in server.repositories


def test_a_record_of_another_model_is_not_shown_with_it(server: stand_in_hub.StandIn, tmp_path: Path) -> None:
    from invented import record

    model = Path(__file__).parents[2] / "figures" / "checkpoints" / "dne-digits-s0.safetensors"
    record().write(tmp_path / "record.json")
    server.repositories["a/mixed"] = {
        "model.safetensors": model.read_bytes(), "record.json": (tmp_path / "record.json").read_bytes()
    }  # fmt: skip
    with pytest.raises(LabError, match=r"a/mixed: record\.json is not that of model\.safetensors"):
        lab.open("hf://a/mixed")


@pytest.mark.parametrize(
    "name", ["", "dne", "a/b/c", "../b", "a/..", "a/b@../../x", "a/b?x=1", "a//b", "hf://a", "a/b--c"]
)
def test_names_are_checked_before_anything_is_asked(name: str) -> None:
    with pytest.raises(LabError, match="is no name on the Hub: write user/name"):
        hub.named(name)


def test_a_name_may_have_a_revision() -> None:
    assert hub.named("hf://me/a.b-c_d@v1.0") == ("me/a.b-c_d", "v1.0") and hub.named("me/x") == ("me/x", None)
