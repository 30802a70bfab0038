"""The state of a run between two steps, for another kind of device too."""

from __future__ import annotations

import torch

from tutelage.training.checkpoints import random_state, restore_random_state, seed_at


def test_numbers_that_begin_afresh_follow_from_seed_and_position() -> None:
    generator = torch.Generator()
    state = random_state(generator)
    assert restore_random_state(state, generator, 0) is None
    assert torch.equal(generator.get_state(), state["method"])
    # As it was before states named the kind of device.
    old = {"torch": state["torch"], "method": torch.zeros(16), "cuda": torch.zeros(16)}
    drawn = []
    for position in ([0, 1, 3], [0, 1, 3], [0, 1, 4]):
        assert restore_random_state(old, generator, seed_at(5, position)) == "cuda"
        drawn.append(torch.cat([torch.rand(3, generator=generator), torch.rand(3)]))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
