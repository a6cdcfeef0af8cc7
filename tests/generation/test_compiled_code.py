"""What numba makes of the kernels."""

import re

import pytest

numba = pytest.importorskip("numba")

from workers.generation.engine.cpu.attend import ATTEND  # noqa: E402 (needs numba)
from workers.generation.engine.cpu.multiply import KERNELS  # noqa: E402
from workers.generation.engine.cpu.openmp import Kernel  # noqa: E402


@pytest.mark.parametrize("kernel", [ATTEND["bf16"], KERNELS["bf16"]], ids=["attention", "product"])
def test_a_kernel_calls_none_of_our_functions_so_a_restart_counts_as_the_first_start_did(kernel: Kernel) -> None:
    """Called ones are other copies in code from the cache than in code just compiled."""
    made = numba.cfunc("void(CPointer(int64))", error_model="numpy")(kernel._function)
    called = set(re.findall(r'call [^\n]*?@"?(_ZN7workers[^"(]+)', made.inspect_llvm()))
    own = kernel._function.__name__  # its C wrapper calls it
    assert len(called) == 1
    assert own in called.pop()
