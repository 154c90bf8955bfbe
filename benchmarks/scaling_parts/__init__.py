"""The scaling benchmark's networks, communication model and report."""
