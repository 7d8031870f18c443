"""Checks of the machine: `tunery doctor`, the checks of `tunery up` before it starts, and those before an upgrade."""
