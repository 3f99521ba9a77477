"""The stages of ``results/compute.py``: each writes tables, row by row, and resumes."""
