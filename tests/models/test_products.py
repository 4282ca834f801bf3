"""Products by oneDNN are MKL's to rounding, gradients too, and nothing outside the context is touched."""

import threading
from collections.abc import Callable

import pytest
import tiny
import torch
from torch import Tensor
from torch.nn import functional as F

from dne_lab.commands import bench
from dne_lab.core import presets
from dne_lab.measure import cost
from dne_lab.models import bank, products
from dne_lab.models.bank import LinearWeights
from dne_lab.models.products import ALL, CHOICES, MKL, ROWS

needs_onednn = pytest.mark.skipif(not products.available(), reason="this torch has no oneDNN product beside MKL")
SHAPE = (2, 4096, 64, 96)  # images, tokens, inner, columns: large enough for every choice
MIXED: Callable[..., Tensor] = products._onednn


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rows of every product that oneDNN is asked for."""
    seen: list[int] = []

    def count(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        seen.append(x.numel() // x.shape[-1])
        return MIXED(x, weight, bias)

    monkeypatch.setattr(products, "_onednn", count)
    return seen


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    draw = torch.Generator().manual_seed(1)
    batch, tokens, inner, columns = SHAPE
    shapes = ((batch, tokens, inner), (columns, inner), (columns,))
    x, weight, bias = (torch.randn(shape, generator=draw).to(dtype).requires_grad_() for shape in shapes)
    return x, weight, bias


def near(mine: Tensor | None, exact: Tensor | None) -> bool:
    assert mine is not None and exact is not None
    return float((mine.double() - exact).detach().abs().max()) <= 2e-6 * float(exact.detach().abs().max())


def test_matrices_with_gaps_are_closed_and_no_others_copied() -> None:
    whole = torch.arange(60.0).view(6, 10)
    for matrix in (whole, whole.T, whole[1:4], whole[1:4].T):
        assert products.dense(matrix) is matrix
    for matrix in (whole[:, 2:5], whole[:, 2:5].T, whole[::2], whole[:, ::3].T):
        found = products.dense(matrix)
        assert found.is_contiguous() and torch.equal(found, matrix)


@needs_onednn
@pytest.mark.parametrize("choice", [ROWS, ALL])
def test_slices_of_wider_tensors(choice: str, calls: list[int]) -> None:
    found = []
    for dtype, by in ((torch.float64, MKL), (torch.float32, choice)):
        draw = torch.Generator().manual_seed(2)
        x, weight = (
            torch.randn(*shape, generator=draw).to(dtype).requires_grad_() for shape in ((8192, 128), (96, 128))
        )
        with products.by(by):
            (products.linear(x[:, 32:96], weight[:, 32:96]) ** 2).sum().backward()
        found.append((x.grad, weight.grad))
    assert calls and all(near(mine, exact) for exact, mine in zip(*found, strict=True))


@needs_onednn
@pytest.mark.parametrize("choice", [ROWS, ALL])
@pytest.mark.parametrize("biased", [True, False])
def test_values_and_gradients_are_those_of_the_plain_product(choice: str, biased: bool, calls: list[int]) -> None:
    found = []
    for dtype, by in ((torch.float64, MKL), (torch.float32, choice)):
        x, weight, bias = operands(dtype)
        with products.by(by):
            out = products.linear(x, weight, bias) if biased else products.times(x, weight.T)
            (out * (out.detach() + 1)).sum().backward()
        found.append((out, x.grad, weight.grad, *([bias.grad] if biased else [])))
    exact, mine = found
    assert all(near(m, e) for m, e in zip(mine, exact, strict=True))
    assert len(calls) == {ROWS: 2, ALL: 3}[choice]  # the product, its input's gradient, with ALL its weight's


@needs_onednn
def test_batched_products_and_those_without_gradients(calls: list[int]) -> None:
    draw = torch.Generator().manual_seed(2)
    x, weight = torch.randn(3, 2048, 64, generator=draw), torch.randn(3, 64, 48, generator=draw)
    strided = x.transpose(0, 1).contiguous().transpose(0, 1)
    with products.by(ALL), torch.no_grad():
        for one in (x, strided):
            assert near(bank.product(one, weight), torch.bmm(x.double(), weight.double()))
    assert calls == [2048] * 6
    with products.by(ROWS):
        bank.product(x, weight)
    with products.by(ALL):
        bank.product(x, weight.requires_grad_()).sum().backward()
    assert len(calls) == 6


@needs_onednn
def test_only_what_needs_a_gradient_gets_one(calls: list[int]) -> None:
    x, weight, bias = operands()
    with products.by(ALL):
        products.linear(x.detach(), weight, bias.detach()).sum().backward()
    assert x.grad is None and bias.grad is None and weight.grad is not None
    assert len(calls) == 2


@needs_onednn
def test_small_products_other_types_and_autocast_stay_with_torch(calls: list[int]) -> None:
    x, weight, bias = operands()
    with products.by(ALL), torch.no_grad():
        assert torch.equal(products.linear(x[:, :8], weight, bias), F.linear(x[:, :8], weight, bias))
        products.linear(x.double(), weight.double())
        products.linear(x.bfloat16(), weight.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            assert products.linear(x, weight, bias).dtype == torch.bfloat16
    assert not calls


@needs_onednn
def test_contexts_nest_end_with_an_exception_and_belong_to_their_thread(calls: list[int]) -> None:
    x, weight, bias = (t.detach() for t in operands())
    layer = LinearWeights(weight, bias)
    used = []

    def ask() -> None:
        before = len(calls)
        bank.linear(x.unsqueeze(0), layer)
        used.append(len(calls) > before)

    with pytest.raises(KeyError), products.by(ROWS):
        ask()
        with products.by(MKL):
            ask()
            with products.by(ALL):
                ask()
        other = threading.Thread(target=ask)
        other.start(), other.join()
        ask()
        raise KeyError
    ask()
    assert used == [True, False, True, False, True, False]
    with pytest.raises(ValueError, match="cublas"), products.by("cublas"):
        pass


def test_a_machine_whose_operator_is_gone_or_wrong_stays_with_mkl(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> Tensor:
        raise AttributeError("_linear_pointwise")

    def wrong(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return F.linear(x.bfloat16(), weight.bfloat16()).float() + (0 if bias is None else bias)

    for operator in (gone, wrong):
        monkeypatch.setattr(products, "_onednn", operator)
        products.available.cache_clear(), products.choose.cache_clear()
        assert not products.available() and products.choose() == MKL
    monkeypatch.undo()
    products.available.cache_clear(), products.choose.cache_clear()


@needs_onednn
@pytest.mark.parametrize(("ratio", "choice"), [(0.7, MKL), (1.0, ROWS), (1.5, ROWS), (2.3, ALL)])
def test_the_measured_ratio_chooses_unless_the_cpu_is_intels(
    ratio: float, choice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(products, "measured", lambda: ratio)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX512")
    for intel, expected in ((False, choice), (True, MKL)):
        monkeypatch.setattr(products, "_intel", lambda intel=intel: intel)
        products.choose.cache_clear()
        assert products.choose() == expected
    products.choose.cache_clear()


def test_a_run_goes_on_as_it_began(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "choose", lambda: ALL)
    assert products.resumed("", begun=False) == ALL
    assert products.resumed("", begun=True) == MKL  # from before there was a choice
    for there in (True, False):
        monkeypatch.setattr(products, "available", lambda there=there: there)
        assert products.resumed(MKL, begun=True) == MKL
        assert products.resumed(ROWS, begun=True) == (ROWS if there else f"{ROWS}+{MKL}")
        assert products.resumed(f"{ROWS}+{MKL}", begun=True) == f"{ROWS}+{MKL}"


@needs_onednn
@pytest.mark.parametrize("choice", CHOICES)
def test_a_training_step_of_the_network_agrees(choice: str, calls: list[int]) -> None:
    config = presets.resolve("cifar100-small", {"network.depth": 2}, method="dne")
    method, _, task = bench.grown(config, 2, "cpu")
    images, labels = bench.images_of(method, 96, "cpu")
    gradients = []
    for by in (MKL, choice):
        method.zero_grad(set_to_none=True)
        with products.by(by):
            torch.stack(list(method.objective(method.model(images), labels, task).values())).sum().backward()
        gradients.append([p.grad for p in method.parameters_to_train().values() if p.grad is not None])
    for plain, mine in zip(*gradients, strict=True):
        assert float((plain - mine).abs().max()) <= 1e-5 * float(plain.abs().max())
    assert bool(calls) == (choice != MKL)


@needs_onednn
def test_operations_are_counted_whoever_computes_them(calls: list[int]) -> None:
    model = tiny.model(heads=(16,), shape=(3, 96, 96))
    plain = cost.flops(model, (3, 96, 96))
    with products.by(ALL):
        assert cost.flops(model, (3, 96, 96)) == plain
    assert not calls


def test_a_gpu_computes_in_tf32_unless_the_run_began_otherwise_or_asks_for_more() -> None:
    wanted = {"auto": "tf32", "bf16-stem": "tf32", "float32": "float32", "bf16": "bf16"}
    for precision, by in wanted.items():
        assert products.resumed_on_gpu("", False, precision) == by
        assert products.resumed_on_gpu(ROWS, True, precision) == f"{ROWS}+{by}"  # began on a CPU
        for before in (*products.ON_GPU, f"{MKL}+tf32"):
            assert products.resumed_on_gpu(before, True, precision) == before
    assert products.resumed_on_gpu("", True, "auto") == "bf16"  # from before runs said so


def test_a_run_that_began_on_a_gpu_goes_on_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "choose", lambda: ROWS)
    assert products.resumed("tf32", begun=True) == f"tf32+{ROWS}"
    with products.by(products.resumed("tf32", begun=True)):
        assert products._backend() == ROWS


def test_the_digits_of_a_gpus_products_are_set_inside_alone() -> None:
    kinds = (torch.backends.cuda.matmul, torch.backends.cudnn.conv)  # type: ignore[attr-defined]
    before = [kind.fp32_precision for kind in kinds]
    for on, value in ((True, "tf32"), (False, "ieee")):
        with pytest.raises(KeyError), products.tf32(on):
            assert [kind.fp32_precision for kind in kinds] == [value, value]
            raise KeyError
        assert [kind.fp32_precision for kind in kinds] == before
