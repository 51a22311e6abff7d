"""placeholder until merged"""

from lvlm_probe.adapter import SourceSequence
from lvlm_probe.layout import TokenLayout


def measure(source: SourceSequence) -> TokenLayout:
    raise NotImplementedError
