"""What tutelage's speed is held to, measured by `python -m benchmarks`, and studies that are run by hand."""
