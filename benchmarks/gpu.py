"""What a GPU does: `dlc-jax bench gpu` with the same options.

It runs from a checkout, with `PYTHONPATH` alone, on a machine that has JAX, Flax and Optax but
not this package's other dependencies.
"""

import os
import sys
import tempfile

if __name__ == "__main__":
    # Where caches go is asked of a package that may not be there.
    os.environ.setdefault("DLC_JAX_CACHE_DIR", os.path.join(tempfile.gettempdir(), "dlc_jax"))

    from dlc_jax.cli import main

    main(["bench", "gpu", *sys.argv[1:]])
