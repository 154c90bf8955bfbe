"""Code that the benchmarks share: command lines, worker processes, training programs, results."""
