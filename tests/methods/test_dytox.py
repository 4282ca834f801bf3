"""DyTox: one transformer read by a token a task; against the literal path and one expert, and what a task costs."""

import copy
from typing import Any

import pytest
import tiny
import torch

import dne_lab as lab
from dne_lab.core.config import Network
from dne_lab.core.errors import LabError
from dne_lab.measure.cost import flops
from dne_lab.methods.dytox import DyToxViT
from dne_lab.models.attention import CLASS
from dne_lab.models.variants import IA


def model(tasks: int = 3, shake: float = 0.3, **changes: Any) -> DyToxViT:
    """Two classes a task, every parameter off its start."""
    torch.manual_seed(0)
    net = DyToxViT(
        tiny.network(**{**tiny.AUTHORS, "depth": 3, **changes}), tiny.SHAPE, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    )
    net.expand(net.network.heads[0], 2)
    for _ in range(tasks - 1):
        net.add_task(2)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * shake)
    return net.eval()


CHOICES: list[dict[str, Any]] = [
    {"heads": (3,)},
    {"heads": (2, 1), "spatial": "mhsa"},
    {"heads": (2,), "hidden_norm": True},
]


@pytest.mark.parametrize("changes", CHOICES)
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_it_equals_the_literal_path(tasks: int, changes: dict[str, Any]) -> None:
    net, images = model(tasks, **changes), tiny.images(3)
    assert len(net.readouts(images)) == tasks
    assert tiny.difference(net.readouts(images), net.readouts_literally(images)) < 1e-5
    net.double()
    assert tiny.difference(net.readouts(images), net.readouts_literally(images)) < 1e-10


def test_with_one_task_it_is_one_expert() -> None:
    net = model(1, heads=(3,))
    expert = tiny.model(IA, (3,), depth=3, **tiny.AUTHORS)
    expert.experts.load_state_dict(net.experts.state_dict())
    images = tiny.images(3)
    assert tiny.difference(net.readouts(images), expert.readouts(images)) < 1e-6


def test_tokens_do_not_read_each_other() -> None:
    net, images = model(3, heads=(3,)), tiny.images(2)
    before = net.readouts(images)
    with torch.no_grad():
        net.tokens[1][0] += 1.0
    after = net.readouts(images)
    assert torch.equal(before[0], after[0]) and torch.equal(before[2], after[2])
    assert not torch.allclose(before[1], after[1])
    net.add_task(4)  # nor does a new one change what old ones see
    logits = net(images).logits
    assert logits.shape == (2, 10) and tiny.difference(net.readouts(images)[:3], after) < 1e-6


def test_what_trains() -> None:
    net = model(2, heads=(3,))
    net.add_task(2)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    still = {name for name, _ in net.named_parameters()} - trained
    assert still == {
        *("experts.0.class_token", "experts.0.norm.weight", "experts.0.norm.bias"),
        *("later.0.token", "later.0.norm.weight", "later.0.norm.bias"),
        *(f"classifier.tasks.{number}.{part}" for number in (0, 1) for part in ("weight", "bias")),
    }
    images = tiny.images(2)
    output = net.train()(images)
    assert output.expertise is not None and output.expertise.shape == (2, 3)
    (output.logits.square().sum() + output.expertise.square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters() if p.requires_grad)
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    net.tune_readouts()
    tuned = {name for name, p in net.named_parameters() if p.requires_grad}
    encoder = ("experts.0.embed", "experts.0.position", "experts.0.blocks.0", "experts.0.blocks.1")
    assert tuned == {name for name, _ in net.named_parameters() if not name.startswith(encoder)}
    assert net.expertise is None and any(name.startswith("experts.0.blocks.2") for name in tuned)


def test_stochastic_depth_is_off_in_a_frozen_encoder() -> None:
    net, images = model(2, heads=(2,), drop_path=0.5), tiny.images(8)
    net.train()
    assert not torch.equal(net.readouts(images)[0], net.readouts(images)[0])
    net.tune_readouts()
    net.experts[0].blocks[-1].requires_grad_(False)  # type: ignore[index]
    net.later.requires_grad_(True)
    net.train()
    net.blocks[-1].drop = 0.0  # type: ignore[assignment]
    assert torch.equal(net.readouts(images)[0], net.readouts(images)[0])


def test_its_attention_can_be_read_and_replaced() -> None:
    net, images = model(3, heads=(2,)), tiny.images(2)
    plain = net.readouts(images)
    point = net.blocks[-1].class_attention.weights  # type: ignore[union-attr]
    seen: list[Any] = []
    handle = point.register_forward_hook(lambda module, args, out: seen.append((args[1], out)))  # type: ignore[union-attr, operator]
    assert all(torch.equal(a, b) for a, b in zip(plain, net.readouts(images), strict=True))
    handle.remove()  # type: ignore[union-attr]
    ((axes, a),) = seen
    assert axes.kind == CLASS and a.shape == (2, 3 * 2, 1 + 6)
    assert axes.query_expert == (1, 1, 2, 2, 3, 3) and axes.query_head == (0, 1) * 3
    torch.testing.assert_close(a.sum(-1), torch.ones(2, 6))

    def second_task_sees_itself_alone(module: Any, args: Any, out: torch.Tensor) -> torch.Tensor:
        changed = out.clone()
        changed[:, 2:4] = 0
        changed[:, 2:4, 0] = 1
        return changed

    handle = point.register_forward_hook(second_task_sees_itself_alone)  # type: ignore[union-attr, operator]
    cut = net.readouts(images)
    handle.remove()  # type: ignore[union-attr]
    assert torch.equal(cut[1][0], cut[1][1])  # so it is the same for every image
    assert torch.equal(cut[0], plain[0]) and torch.equal(cut[2], plain[2])


def test_the_cost_of_a_task() -> None:
    """Literal F of the published geometry grows by one reading of all patches a task; what runs hardly grows."""
    shape = (3, 32, 32)
    with torch.device("meta"):
        net = DyToxViT(Network(), shape)
        net.expand(12, 50)
    net = net.to_empty(device="cpu").eval()
    for values in (*net.parameters(), *net.buffers()):
        values.data.zero_()
    counts: dict[int, tuple[int, int]] = {}
    for task in range(1, 7):
        if task > 1:
            net.add_task(10)
        if task in (1, 2, 3, 6):
            pair = [lambda x: net.classifier(net.readouts_literally(x)), lambda x: net.classifier(net.readouts(x))]
            counts[task] = (flops(pair[0], shape), flops(pair[1], shape))
    literal, spent = zip(*(counts[task] for task in (1, 6)), strict=True)
    assert literal[0] / 1e9 == pytest.approx(1.209, rel=0.01)
    assert literal[1] / 1e9 == pytest.approx(1.416, rel=0.01)
    assert spent[0] < literal[0] and spent[1] < 0.87 * literal[1]
    assert counts[3][0] - counts[2][0] == counts[2][0] - counts[1][0]  # the same for every task
    assert (spent[1] - spent[0]) < 0.12 * (literal[1] - literal[0])


def test_another_read_out_is_refused() -> None:
    with pytest.raises(LabError, match=r"network\.readout = cls_token: dytox reads its task tokens by class attention"):
        DyToxViT(tiny.network(), tiny.SHAPE)
    net = model(2, heads=(2,))
    with pytest.raises(LabError, match="uint8 images of shape"):
        net(torch.zeros(1, *tiny.SHAPE))


def test_a_probe_reads_the_first_task() -> None:
    net = copy.deepcopy(model(2, heads=(2,)))
    with lab.probe(net, kind="class") as maps:
        net(tiny.images(2))
    assert len(maps.get().frame()) == 2 * 2 * 7
