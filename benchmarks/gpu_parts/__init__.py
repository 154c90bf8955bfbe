"""The parts of the GPU benchmark, one module each; `benchmarks/gpu.py` runs them."""
