"""The rate of a large float32 matrix product on the device."""

import statistics
import time

import jax
import jax.numpy as jnp
from harness.workers import serve

_SIZE, _REPETITIONS = 2048, 9


def main() -> None:
    """Responds to each request with the median rate of several products."""
    a = jax.random.normal(jax.random.key(0), (_SIZE, _SIZE), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))

    def respond() -> dict[str, float]:
        seconds = []
        for _ in range(_REPETITIONS):
            start = time.perf_counter()
            jax.block_until_ready(product(a))
            seconds.append(time.perf_counter() - start)
        return {"gflops": 2 * _SIZE**3 / statistics.median(seconds) / 1e9}

    serve(respond)


if __name__ == "__main__":
    main()
