"""One command that measures a GPU: `dlc-jax bench gpu`.

`suite` runs the parts one after the other, each in a process of its own (`child`), within a
budget of seconds. Each other module is one part.
"""
