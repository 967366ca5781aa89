"""`meshmintd doctor`: what is wrong with an installation, and what to do about it.

One module a subject; each gives findings and stops at nothing. It looks and tries,
and changes nothing: what is right and wrong is judged by the rooms it asks.
"""

from meshmint_server.cli.doctor.authenticators import SHARED_IDENTITIES_ADVICE
from meshmint_server.cli.doctor.command import doctor

__all__ = ["SHARED_IDENTITIES_ADVICE", "doctor"]
