"""The dashboards of the suite, one module each."""

from estmonitoring.dashboards.agents import AGENTS
from estmonitoring.dashboards.audit import AUDIT
from estmonitoring.dashboards.bus import BUS
from estmonitoring.dashboards.ca import CA
from estmonitoring.dashboards.enrollment import ENROLLMENT
from estmonitoring.dashboards.renewal import RENEWAL

BOARDS = (ENROLLMENT, RENEWAL, CA, AUDIT, BUS, AGENTS)
