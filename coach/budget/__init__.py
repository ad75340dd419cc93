"""What may be spent: the limits of users and orgs, and the quotas of provider endpoints."""

from .endpoint import Admission, BudgetStatistics, EndpointBudget, open_endpoint_budget
from .limits import Reservation, UserLimits, open_user_limits
from .live_quota import LASTS_S_MAX, said_for_s, say_quota, unsay_quota
from .local_limits import LocalLimits
from .quota import DIMENSIONS, LANES, Ask, Lane
from .rules import LIMIT_MAX, Limit, Rule, erase_user, set_rule, show_limits, show_rules
from .scripts import Patience
from .ungoverned import FreeAdmission, Ungoverned

__all__ = [
    "DIMENSIONS",
    "LANES",
    "LASTS_S_MAX",
    "LIMIT_MAX",
    "Admission",
    "Ask",
    "BudgetStatistics",
    "EndpointBudget",
    "FreeAdmission",
    "Lane",
    "Limit",
    "LocalLimits",
    "Patience",
    "Reservation",
    "Rule",
    "Ungoverned",
    "UserLimits",
    "erase_user",
    "open_endpoint_budget",
    "open_user_limits",
    "said_for_s",
    "say_quota",
    "set_rule",
    "show_limits",
    "show_rules",
    "unsay_quota",
]
