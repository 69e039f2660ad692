"""On which GPUs the kernels run. What compiles was found without one, by triton's compiler on all that the launchers pick: 3.9.0
for compute capabilities 8.0, 8.6, 8.9, 9.0, 10.0 and 12.0, 3.6.0 for 8.0, 9.0 and 12.0; for 10.0 (heads of 64 channels in 3.7.0 and
3.8.0) 3.6.0 and 3.7.0 fail, 3.8.0 and 3.9.0 do not."""

import pytest

from tokred.gpu import compiles_for

triton = pytest.importorskip("triton")


@pytest.mark.parametrize(
    ("version", "capability", "expected"),
    [
        ("3.6.0", (7, 5), False),
        ("3.6.0", (8, 0), True),
        ("3.6.0", (9, 0), True),
        ("3.7.1", (10, 0), False),
        ("3.7.1", (10, 3), False),
        ("3.8.0", (10, 0), True),
        ("3.10.0+git1a2b", (10, 3), True),
        ("3.6.0", (12, 0), True),
    ],
)
def test_kernels_run_where_their_compiler_can_make_them(version, capability, expected, monkeypatch):
    monkeypatch.setattr(triton, "__version__", version)
    assert compiles_for(capability) == expected
