"""What of DCNv3 works on this machine's GPU, and how fast it is: `python -m benchmarks.gpu`."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
BACKENDS = ("torch", "jax", "tensorflow")
