"""Peak memory from the allocator, against what hand-made calls hold."""

import pytest
import torch

from tokred.memory import peak_memory, ran_out

MIB = 2**18  # numbers of four bytes


def three_and_one():
    """3 MiB at once, 1 of which stays."""
    first = torch.empty(MIB)
    second = first.new_empty(2 * MIB)
    del second
    return first


def test_the_peak_is_what_was_held_at_once():
    assert peak_memory(three_and_one, "cpu").held_mib == pytest.approx(3, abs=0.01)


def test_the_peak_is_the_same_again():
    assert peak_memory(three_and_one, "cpu") == peak_memory(three_and_one, "cpu")


def test_what_was_there_before_does_not_count():
    weight = torch.ones(8 * MIB)
    assert peak_memory(lambda: weight[:MIB] + 1, "cpu").held_mib == pytest.approx(1, abs=0.01)


def test_what_an_operation_holds_within_itself_counts():
    """The copy that a product makes of an operand that is not contiguous in either direction; its result is small."""
    a, b = torch.ones(512, 1024)[:, ::2], torch.ones(512, 1)
    assert peak_memory(lambda: a @ b, "cpu").held_mib > 1


def test_on_a_cpu_nothing_is_reserved():
    assert peak_memory(three_and_one, "cpu").reserved_mib is None


def test_a_call_that_fails_leaves_the_record_off():
    with pytest.raises(ZeroDivisionError):
        peak_memory(lambda: 1 / 0, "cpu")
    assert peak_memory(three_and_one, "cpu").held_mib == pytest.approx(3, abs=0.01)


def test_the_cpu_allocators_error_is_out_of_memory():
    with pytest.raises(RuntimeError) as error:
        torch.empty(2**60)
    assert ran_out(error.value)


@pytest.mark.parametrize(
    ("error", "is_memory"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"), True),
        (RuntimeError("shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_other_errors_are_told_apart(error, is_memory):
    assert ran_out(error) is is_memory


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_peak_is_what_was_held_at_once():
    there = torch.ones(8 * MIB, device="cuda")
    peak = peak_memory(lambda: there.new_empty(2 * MIB), "cuda")
    assert peak.held_mib == pytest.approx(2, abs=0.01)
    assert peak.reserved_mib is not None and peak.reserved_mib >= 8 + 2
