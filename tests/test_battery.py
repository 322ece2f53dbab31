"""Every rule, alone and in a tower, through the battery; `python -m benchmarks.battery` is the same beside others."""

from pathlib import Path

import pytest
from battery import PROBES, ours, run

TABLE = Path(__file__).parent.parent / "docs" / "battery.md"
TODO = {
    "torch.compile": pytest.mark.xfail(strict=True, reason="dynamo traces into step, breaks the graph 20 times and warns"),
}


@pytest.mark.parametrize("contestant", ours(), ids=str)
@pytest.mark.parametrize("probe", [pytest.param(p, marks=TODO.get(p, ())) for p in PROBES])
def test_battery(probe, contestant):
    run(probe, contestant)
