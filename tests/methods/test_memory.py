"""Heads on the unit sphere and the memory of embeddings."""

from __future__ import annotations

import math

import pytest
import torch

from tutelage.methods.memory import EmbeddingHead, MemoryBank


def bank_of(rows: list[list[float]]) -> MemoryBank:
    bank = MemoryBank(len(rows), len(rows[0]))
    bank.rows.copy_(torch.tensor(rows))
    return bank


def test_a_head_is_linear_up_to_length_and_bears_zeros() -> None:
    torch.manual_seed(0)
    head = EmbeddingHead(5, 3)
    features = torch.randn(4, 5)
    embedded = head(features)
    raw = features @ head.linear.weight.T + head.linear.bias
    torch.testing.assert_close(embedded, raw / raw.pow(2).sum(1, keepdim=True).sqrt())
    torch.nn.init.zeros_(head.linear.bias)
    assert (head(torch.zeros(2, 5)) == 0).all()


def test_a_new_bank_is_uniform_and_of_length_one_on_average() -> None:
    torch.manual_seed(0)
    rows = MemoryBank(400, 32).rows
    bound = 1 / math.sqrt(32 / 3)
    assert rows.abs().max() <= bound and rows.abs().max() > 0.99 * bound
    assert float(rows.norm(dim=1).pow(2).mean()) == pytest.approx(1, abs=0.02)
    unit = MemoryBank(400, 32, normalised=True).rows
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(400))


def test_rows_move_towards_new_embeddings_and_are_written_apart() -> None:
    bank = bank_of([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
    new = torch.tensor([[0.0, 1.0], [0.0, 1.0]], requires_grad=True)
    moved = bank.moved(torch.tensor([2, 0]), new, 0.5)
    half = math.sqrt(0.5)
    torch.testing.assert_close(moved, torch.tensor([[-half, half], [half, half]]))
    assert not moved.requires_grad and bank.rows[0].tolist() == [1, 0]
    bank.write(torch.tensor([2, 0]), moved)
    torch.testing.assert_close(bank.rows, torch.tensor([[half, half], [0, 1], [-half, half]]))
    by_row = bank.moved(torch.tensor([1, 1]), torch.tensor([[1.0, 0.0]] * 2), torch.tensor([[0.0], [1.0]]))
    torch.testing.assert_close(by_row, torch.tensor([[1.0, 0.0], [0.0, 1.0]]))


@pytest.mark.parametrize("count", [2, 40])
def test_scores_are_the_same_whichever_way_is_cheaper(count: int) -> None:
    generator = torch.Generator().manual_seed(count)
    bank = MemoryBank(20, 3).double()
    anchors = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    chosen = torch.randint(20, (2, count), generator=generator)
    scores = bank.scores(anchors, chosen)
    expected = torch.einsum("bmd,bkd->bmk", anchors, bank.rows[chosen])
    torch.testing.assert_close(scores, expected)
    weight = torch.randn(scores.shape, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(
        torch.autograd.grad((scores * weight).sum(), anchors),
        torch.autograd.grad((expected * weight).sum(), anchors),
    )


def test_many_negatives_are_not_fetched_row_by_row() -> None:
    """Nothing as large as B x K x D is made where the products with the whole bank are smaller."""
    sizes = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor):
                sizes.append(result.numel())
            return result

    bank, anchors = MemoryBank(50, 16), torch.randn(2, 4, 16)
    with Largest():
        bank.scores(anchors, torch.randint(50, (2, 30)))
    assert 2 * 4 * 50 <= max(sizes) < 2 * 30 * 16
