"""Every rule, alone and in a tower, through the battery; `python -m benchmarks.battery` is the same beside others."""

from pathlib import Path

import pytest
from battery import PROBES, ours, run

# the compiler of torch 2.13 itself imports what torch 2.13 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")
TABLE = Path(__file__).parent.parent / "docs" / "battery.md"


@pytest.mark.parametrize("contestant", ours(), ids=str)
@pytest.mark.parametrize("probe", PROBES)
def test_battery(probe, contestant):
    run(probe, contestant)
