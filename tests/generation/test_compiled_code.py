"""What numba makes of the kernels."""

import ast
import re
from pathlib import Path

import pytest

numba = pytest.importorskip("numba")

from workers.generation.engine import cpu  # noqa: E402 (needs numba)
from workers.generation.engine.cpu.attend import ATTEND  # noqa: E402
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


KERNEL_FILES = sorted(Path(cpu.__file__).parent.glob("*.py"))


def freed_too_early(source: str) -> list[str]:
    """Arrays of which a function takes the address outside its loops, and that no loop mentions."""
    found = []
    for function in [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.FunctionDef)]:
        loops = [node for node in ast.walk(function) if isinstance(node, ast.For | ast.While)]
        kept = {node.id for loop in loops for node in ast.walk(loop) if isinstance(node, ast.Name)}
        addresses = re.findall(r"(?<![.\w])(\w+)\.ctypes\.data\b", ast.unparse(function)) if loops else []
        found += [name for name in addresses if name not in kept]
    return found


def test_no_kernel_writes_to_memory_that_numba_has_freed() -> None:
    """It frees an array after its last mention, whatever becomes of an address that was taken from it."""
    early = "def run(n):\n    own = np.empty(n)\n    at = own.ctypes.data\n    for i in range(n):\n        put(at, i)"
    assert freed_too_early(early) == ["own"]
    assert freed_too_early(early.replace("put(at, i)", "put(own.ctypes.data, i)")) == []
    assert len(KERNEL_FILES) > 10
    assert [path.name for path in KERNEL_FILES if freed_too_early(path.read_text())] == []
