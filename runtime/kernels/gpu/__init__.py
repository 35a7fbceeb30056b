"""Experts on a GPU as Triton kernels, over tables of the addresses of each expert's weights."""
