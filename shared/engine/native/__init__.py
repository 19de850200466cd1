"""Kernels of our own, in C: only what no kept library does well on a CPU, attention over pages above all.

They are compiled for this very processor at the first start, in about two seconds, and kept in the cache. Without a C
compiler torch computes the same, slower.
"""
