"""Damaged files of tensors raise what `UNREADABLE` lists."""

from __future__ import annotations

import io
import random

import pytest
import torch

from training.models.tensor_file import UNREADABLE, load_tensors


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.filterwarnings("ignore")  # torch's, of what the damage makes of a file
def test_a_damaged_file_is_read_or_raises_what_is_listed(zipped: bool) -> None:
    whole = io.BytesIO()
    state = {"state_dict": {"a": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.float16)}}
    torch.save(state, whole, _use_new_zipfile_serialization=zipped)
    refused = 0
    for seed in range(400):
        dice, data = random.Random(seed), bytearray(whole.getvalue())
        if seed % 3:
            for _ in range(dice.choice([1, 3, 10])):
                data[dice.randrange(len(data))] = dice.randrange(256)
        else:
            del data[dice.randrange(len(data)) :]
        try:
            load_tensors(io.BytesIO(data))
        except UNREADABLE:
            refused += 1
    assert 100 < refused < 400
