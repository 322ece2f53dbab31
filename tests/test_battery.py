"""Every rule, alone and in a tower, through the battery; `python -m benchmarks.battery` is the same beside others."""

from pathlib import Path

import pytest
from benchmarks.probes import PROBES, ours, run
from helpers import crossed

TABLE = Path(__file__).parent.parent / "docs" / "battery.md"


@pytest.mark.parametrize(("probe", "contestant"), crossed(PROBES, ours()), ids=str)
def test_battery(probe, contestant):
    run(probe, contestant)


def test_the_table_in_the_documentation_is_of_these_probes_and_rules():
    """A rule that is newer than the table is in it when it is made anew."""
    header, _, *rows = [line for line in TABLE.read_text().splitlines() if line.startswith("|")]
    assert [cell.strip() for cell in header.split("|")[3:-1]] == list(PROBES)
    named, mine = [row.split("|")[1].strip() for row in rows], [str(c) for c in ours()]
    found = named[: named.index("torch AdamW")]  # those of others come last
    assert found == [name for name in mine if name in found]
    assert len(found) >= 22
