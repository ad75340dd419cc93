"""`coach doctor`: is this machine, its Redis, and are the providers fit for what is configured?"""

from .doctor import examine
from .report import Finding, as_json, print_report

__all__ = ["Finding", "as_json", "examine", "print_report"]
