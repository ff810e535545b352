"""LabelMemory: dense Adam equals torch's, lazy Adam equals a row-by-row twin, resume is exact, files and processes."""

import os
import socket

import pytest
import torch
import torch.multiprocessing

from plures.errors import PluresError
from plures.losses.label_memory import LabelMemory, load_table

N, K, B, LR = 12, 5, 4, 0.05


def batches(steps, seed=0, repeat=False):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        index = torch.randperm(N, generator=generator)[:B]
        yield torch.cat([index, index[:1]]) if repeat else index


def cost(rows, index):
    """Some loss whose gradient depends on the rows and on which they are."""
    return ((rows - index[:, None] / N).sin() ** 2 / 3).sum()


def train(memory, steps, seed=0, repeat=False):
    for index in batches(steps, seed, repeat):
        cost(memory.rows(index), index).backward()
        memory.apply_gradient(LR)
    return memory


def start():
    return torch.randn(N, K, generator=torch.Generator().manual_seed(9))


@pytest.mark.parametrize("repeat", [False, True])
def test_dense_adam_is_torch_adam_bit_for_bit(repeat):
    twin = torch.nn.Parameter(start())
    adam = torch.optim.Adam([twin], lr=LR)
    for index in batches(30, repeat=repeat):
        adam.zero_grad()
        cost(twin[index], index).backward()
        adam.step()
    memory = train(LabelMemory(start(), learned=True, dense_adam=True), 30, repeat=repeat)
    assert torch.equal(memory.rows(torch.arange(N)), twin)


def test_dense_rows_drift_and_lazy_rows_rest_between_visits():
    for dense in (True, False):
        memory = LabelMemory(start(), learned=True, dense_adam=dense)
        train(memory, 1)
        first = next(iter(batches(1)))
        others = torch.tensor([i for i in range(N) if i not in first.tolist()])[:B]
        before = memory.rows(first).detach()
        cost(memory.rows(others), others).backward()
        memory.apply_gradient(LR)
        assert torch.equal(memory.rows(first), before) != dense


def test_lazy_adam_is_one_adam_for_every_row():
    twins = [torch.nn.Parameter(row.clone()) for row in start()]
    adams = [torch.optim.Adam([row], lr=LR) for row in twins]
    for index in batches(40):
        for i in index.tolist():
            adams[i].zero_grad()
            cost(twins[i][None], torch.tensor([i])).backward()
            adams[i].step()
    memory = train(LabelMemory(start(), learned=True), 40)
    torch.testing.assert_close(memory.rows(torch.arange(N)), torch.stack(list(twins)), rtol=1e-5, atol=1e-6)


def test_a_row_read_twice_gets_both_gradients():
    once, twice = (LabelMemory(start(), learned=True) for _ in range(2))
    index = torch.tensor([3])
    (2 * cost(once.rows(index), index)).backward()
    (cost(twice.rows(index), index) + cost(twice.rows(index), index)).backward()
    for memory in (once, twice):
        memory.apply_gradient(LR)
        (cost(memory.rows(index), index) * 0.1).backward()
        memory.apply_gradient(LR)
    torch.testing.assert_close(once.rows(index), twice.rows(index))


def test_loss_scale_and_broken_gradients():
    plain, scaled = (LabelMemory(start(), learned=True) for _ in range(2))
    index = torch.tensor([1, 2])
    for memory, factor in ((plain, 1.0), (scaled, 1024.0)):
        for _ in range(3):
            (factor * cost(memory.rows(index), index)).backward()
            memory.apply_gradient(LR, loss_scale=factor)
    assert torch.equal(plain.rows(index), scaled.rows(index))
    before = plain.rows(torch.arange(N)).detach().clone()
    weights = torch.tensor([[float("inf")], [1.0]])
    (plain.rows(index) * weights).sum().backward()
    plain.apply_gradient(LR)
    after = plain.rows(torch.arange(N)).detach()
    assert torch.equal(after[1], before[1])
    assert not torch.equal(after[2], before[2])
    assert after.isfinite().all()
    state = plain.state_dict()
    assert state["visits"][:3].tolist() == [0, 3, 4]
    assert torch.equal(state["first"][1], scaled.state_dict()["first"][1])  # the moments rest as well
    assert torch.equal(state["second"][1], scaled.state_dict()["second"][1])


def test_rows_read_without_gradient_are_not_trained():
    memory = LabelMemory(start(), learned=True)
    with torch.no_grad():
        assert not memory.rows(torch.tensor([1])).requires_grad
    assert memory.rows(torch.tensor([1])).requires_grad


def test_a_saved_table_begins_the_next_stage(tmp_path):
    memory = LabelMemory(start(), learned=True)
    memory.save(tmp_path / "t.safetensors")
    assert torch.equal(load_table(tmp_path / "t.safetensors", memory.shape), start())
    with pytest.raises(PluresError, match=r"of shape \(12, 5\), this run requires \(3, 5\)"):
        load_table(tmp_path / "t.safetensors", torch.Size((3, 5)))
    with pytest.raises(PluresError, match="no label state to begin with"):
        load_table(tmp_path / "other.safetensors", memory.shape)


@pytest.mark.parametrize("dense", [False, True])
def test_resume_is_exact(dense, tmp_path):
    straight = train(LabelMemory(start(), learned=True, dense_adam=dense), 7)
    torch.save(straight.state_dict(), tmp_path / "state.pt")
    train(straight, 9, seed=1)
    resumed = LabelMemory(torch.zeros(N, K), learned=True, dense_adam=dense)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    train(resumed, 9, seed=1)
    assert torch.equal(straight.rows(torch.arange(N)), resumed.rows(torch.arange(N)))


def test_a_foreign_state_is_refused():
    memory = LabelMemory(start(), learned=True)
    with pytest.raises(PluresError, match=r"of shape \(3, 5\), this run requires .* of shape \(12, 5\)"):
        memory.load_state_dict(LabelMemory(torch.zeros(3, K), learned=True).state_dict())
    with pytest.raises(PluresError, match="same data, loss and options"):
        memory.load_state_dict(LabelMemory(start(), learned=False).state_dict())


def test_a_mapped_memory_is_the_same_and_leaves_no_file(tmp_path):
    mapped = LabelMemory(start(), learned=True, in_memory_at_most=0, folder=tmp_path)
    assert mapped.mapped
    assert len(list(tmp_path.iterdir())) == 1
    train(mapped, 5)
    assert torch.equal(mapped.rows(torch.arange(N)), train(LabelMemory(start(), learned=True), 5).rows(torch.arange(N)))
    del mapped
    assert not list(tmp_path.iterdir())


def test_a_written_memory_keeps_nan_and_gives_no_gradient():
    memory = LabelMemory(torch.full((N, K), torch.nan), learned=False, dtype=torch.float16)
    memory.write(torch.tensor([2]), torch.full((1, K), 0.25))
    rows = memory.rows(torch.tensor([2, 3]))
    assert rows.dtype == torch.float32
    assert not rows.requires_grad
    assert (rows[0] == 0.25).all()
    assert rows[1].isnan().all()


def test_a_learned_memory_is_never_in_half_precision():
    with pytest.raises(ValueError, match="half precision swallows small steps"):
        LabelMemory(start(), learned=True, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"a label state is \[N, K\] or \[N, K, ...\], got \(12,\)"):
        LabelMemory(torch.zeros(N), learned=False)


def _one_process(rank, port, folder):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    memory = LabelMemory(start(), learned=True)
    for index in batches(6):
        mine = index[:3] if rank == 0 else index[3:]  # unequal shares, as at the end of an epoch
        (cost(memory.rows(mine), mine) * 2).backward()  # the average over two processes halves it
        memory.apply_gradient(LR)
    torch.save(memory.state_dict(), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_hold_the_same_memory_as_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_one_process, (port, str(tmp_path)), nprocs=2)
    alone = train(LabelMemory(start(), learned=True), 6).state_dict()
    for rank in range(2):
        state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in alone.items():
            torch.testing.assert_close(state[name], value, rtol=1e-6, atol=1e-7)
