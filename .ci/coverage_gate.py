"""Gate on coverage: 95 % of the lines and 90 % of the branches of the package, from `coverage json`."""

import json
import sys
from pathlib import Path

LINES, BRANCHES = 95.0, 90.0

totals = json.loads(Path(sys.argv[1]).read_text("utf-8"))["totals"]
lines = 100 * totals["covered_lines"] / totals["num_statements"]
branches = 100 * totals["covered_branches"] / totals["num_branches"]
print(f"coverage: {lines:.2f} % of the lines (at least {LINES:.0f}), {branches:.2f} % of the branches ({BRANCHES:.0f})")
sys.exit(lines < LINES or branches < BRANCHES)
