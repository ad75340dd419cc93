"""What may be spent: the limits of users and orgs, and the quotas of provider endpoints."""

from .endpoint import Admission, BudgetStatistics, EndpointBudget, open_endpoint_budget
from .limits import Reservation, UserLimits, user_limits
from .quota import LANES, Ask, Lane
from .ungoverned import FreeAdmission, Ungoverned

__all__ = [
    "LANES",
    "Admission",
    "Ask",
    "BudgetStatistics",
    "EndpointBudget",
    "FreeAdmission",
    "Lane",
    "Reservation",
    "Ungoverned",
    "UserLimits",
    "open_endpoint_budget",
    "user_limits",
]
