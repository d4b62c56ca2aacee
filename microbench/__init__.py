"""Measuring: stopping rule, clocks, instruction probes, co-issue, bandwidth, launch latency. Nothing else times a
kernel."""
