"""Tokens of many videos: what comes out is what went in, from memory and from the file."""

import pytest
import torch

from tokred.tasks.features import Features, Room


@pytest.mark.parametrize("room_bytes", [0, 100, 10**6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_comes_out_is_what_went_in(room_bytes, dtype):
    features = Features(Room(room_bytes))
    put = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n)).to(dtype) for n in (1, 5, 2, 9)]
    for x_NC in put:
        features.append(x_NC)
    assert len(features) == 4
    for place in (3, 0, 2, 1, 1):
        assert torch.equal(features[place], put[place]) and features[place].dtype == dtype


def test_a_video_does_not_keep_its_batch_alive():
    features = Features(Room())
    batch_BNC = torch.zeros(8, 4, 2)
    features.append(batch_BNC[3])
    assert features[0].untyped_storage().nbytes() == features[0].nbytes


def test_those_kept_at_the_same_time_share_the_room_and_give_it_back():
    room, x_NC = Room(100), torch.zeros(5, 4)  # 80 bytes
    first, second = Features(room), Features(room)
    first.append(x_NC)
    second.append(x_NC)
    assert isinstance(first._kept[0], torch.Tensor) and not isinstance(second._kept[0], torch.Tensor)
    first.close()
    second.append(x_NC)
    assert isinstance(second._kept[1], torch.Tensor)
