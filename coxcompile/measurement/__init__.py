"""Measuring the machine: rooflines, and the probes that calibration is made of."""
