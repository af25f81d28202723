"""The reach of a slot: how long before its certificate ends it is due, as a step of a scale.

A claim wants the slots that are due, those that expire first before the others. Neither an index
over due times nor one over expiry finds them: in a fleet with certificates of a day and of ninety,
most of those that expire first are not due. Within one reach both orders are nearly the same.
"""

from __future__ import annotations

STEPS = 23
"""Of the scale in a factor of e: the times of one reach differ by less than five percent."""
LONGEST = 460
"""The reach of everything that is due more than fifteen years before its end."""
REACH = (
    "least(floor(ln(greatest(date_part('epoch', not_after - next_attempt_at), 1)) "
    f"* {STEPS}), {LONGEST})::integer"
)
"""SQL over the columns of a slot, as the index has it."""
END = (
    f"case when reach = {LONGEST} then 'infinity' "
    f"else now() + interval '1 second' * exp((reach + 1) / {STEPS}.0::float8) end"
)
"""SQL over a ``reach``: certificates that end later belong to slots that are not due."""
