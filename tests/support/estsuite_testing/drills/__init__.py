"""Drills: each fault alone, in a whole suite under light load, and a report of what was seen.

``catalogue`` names the faults, ``faults`` has those that ``chaos`` does not do, ``observation``
watches what an operator sees, ``run`` does one drill after the other, ``report`` writes them down.
"""
