"""Scripts that measure and print. Run one as a file, and `gpu` by `python -m benchmarks.gpu`."""
