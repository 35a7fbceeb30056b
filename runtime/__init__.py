"""What runs when a compiled graph runs: expert kernels now, streams and transfers later."""
