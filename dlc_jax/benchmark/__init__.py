"""Measured comparisons: the lecture's program, single operations, starting up, and scaling.

Each contender runs in a process of its own and waits for its turn, so that one run compares
them under the same conditions: A B A B, by medians.
"""
