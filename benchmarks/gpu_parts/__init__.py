"""The parts of the GPU benchmark, a module each; `benchmarks/gpu.py` runs them."""
