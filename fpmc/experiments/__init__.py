"""The heavy runs behind the tables: jobs, their units of work, shards, provenance.

``python -m fpmc.experiments --data photos`` computes the tables that :mod:`fpmc.results` reads.
"""

from fpmc.experiments.job import Job

__all__ = ["Job"]
