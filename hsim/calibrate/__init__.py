"""Measures real kernels, operations and decoder steps on this machine, and fits the profiles that simulations read."""
