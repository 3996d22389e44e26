"""Kernels on disk, and the process that compiles one while another is compiled here."""

import importlib

import pytest


numba = pytest.importorskip("numba", reason="there is no numba")

from igpt_hf.model.kernel_simd import compiled_beside, is_on_disk  # noqa: E402


MODULE = """
from igpt_hf.model.kernel_simd import compile_kernel, numba

def add_one(x):
    return x + 1

def make_kernel():
    return compile_kernel(add_one, (numba.int64,))
"""


def test_another_process_compiles_what_is_not_on_disk(tmp_path, monkeypatch):
    (tmp_path / "small_kernel.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(numba.config, "CACHE_DIR", str(tmp_path / "cache"))
    module = importlib.import_module("small_kernel")
    assert not is_on_disk(module.add_one)
    with compiled_beside(module.make_kernel, module.add_one):
        pass
    assert is_on_disk(module.add_one)
    kernel = module.make_kernel()
    assert kernel(1) == 2 and sum(kernel.stats.cache_hits.values()) == 1
    monkeypatch.setattr("subprocess.Popen", None)  # which cannot be called
    with compiled_beside(module.make_kernel, module.add_one):
        pass
