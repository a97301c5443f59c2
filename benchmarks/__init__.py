"""Speed and footprint as ratios, measured side by side in one run: `python -m benchmarks`."""
