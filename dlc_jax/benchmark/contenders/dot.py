"""How many operations a second the device does in a large float32 matrix product."""

import statistics
import time

import jax
import jax.numpy as jnp

from dlc_jax.benchmark.rounds import answer

_SIZE, _TIMES = 2048, 9


def main() -> None:
    """Answers each request with the median rate of some products."""
    a = jax.random.normal(jax.random.key(0), (_SIZE, _SIZE), jnp.float32)
    product = jax.jit(lambda a: a @ a)
    jax.block_until_ready(product(a))

    def respond() -> dict[str, float]:
        seconds = []
        for _ in range(_TIMES):
            start = time.perf_counter()
            jax.block_until_ready(product(a))
            seconds.append(time.perf_counter() - start)
        return {"gflops": 2 * _SIZE**3 / statistics.median(seconds) / 1e9}

    answer(respond)


if __name__ == "__main__":
    main()
