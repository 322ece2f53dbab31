"""Time and memory beside what users would pick instead: ``python -m benchmarks``. Not part of the package."""
