"""Benchmarks: workloads, timing of an engine, and single kernels beside the machine's limits."""
