"""Command line for weights: inspect, convert, verify, export, list, download."""
