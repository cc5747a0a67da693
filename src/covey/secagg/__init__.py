"""Secure Aggregation: the server learns the sum over a large enough set, or nothing."""

from covey.secagg.identity import Certificate, EnrolmentAuthority, Identity
from covey.secagg.in_process import run_in_process, smallest_segment, sum_in_process
from covey.secagg.parameters import Parameters, find_parameters
from covey.secagg.party import Party
from covey.secagg.server import Opened, Server, Step
from covey.secagg.session import Mode, Session

__all__ = [
    "Certificate",
    "EnrolmentAuthority",
    "Identity",
    "Mode",
    "Opened",
    "Parameters",
    "Party",
    "Server",
    "Session",
    "Step",
    "find_parameters",
    "run_in_process",
    "smallest_segment",
    "sum_in_process",
]
