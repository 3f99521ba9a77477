"""Compiled loops on a CPU: squares and whole images."""
