"""How long collectives take: rings, trees, adding switches, direct exchange and torus rings."""

from simulator.collectives.selection import collective_algorithm, collective_time

__all__ = ["collective_algorithm", "collective_time"]
