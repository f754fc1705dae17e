# Copyright (c) monai_rrr contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.


"""The fault catalogue as a table: every row with its tests, their result and their seconds, from one run of them all.

    python benchmarks/catalogue.py

runs the tests of all rows and writes ``benchmarks/results/catalogue.json`` and ``.md``; ``--reports FILE ...`` reads
their results from whole runs of the suites instead (``make test PYTEST_ADDOPTS=--junitxml=FILE``, ``test-slow`` and
``test-label``). Rows of the labeling server need its environment (``make install-label``, and
``MONAI_RRR_LABEL_PYTHON=.venv-label/bin/python``). Rows that do not apply yet are listed with the reason.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections import defaultdict
from datetime import date
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"


def load_rows() -> tuple[dict[str, dict[str, str]], dict[str, list[str]]]:
    spec = importlib.util.spec_from_file_location("rows", ROOT / "tests" / "reliability" / "rows.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CATALOGUE, module.tests_by_row()


def run(tests: list[str]) -> dict[str, list[tuple[str, float]]]:
    """Run tests."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-m", "not gpu", f"--junitxml={report}", *tests]
        subprocess.run(command, cwd=ROOT, check=False)
        return read([report])


def read(reports: list[Path]) -> dict[str, list[tuple[str, float]]]:
    """Result and seconds of every parametrization, by node id without parameters."""
    outcome = defaultdict(list)
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            kinds = {child.tag for child in case}
            result = "failed" if kinds & {"failure", "error"} else "skipped" if "skipped" in kinds else "passed"
            file = str(case.get("classname")).replace(".", "/") + ".py"
            name = str(case.get("name")).partition("[")[0]
            outcome[f"{file}::{name}"].append((result, float(case.get("time", 0))))
    return outcome


def main() -> None:
    """Run, then write both files; the exit code says whether every row that applies passed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", nargs="+", type=Path, help="JUnit files of the suites")
    arguments = parser.parse_args()
    catalogue, found = load_rows()
    tests = sorted({test for tests in found.values() for test in tests})
    outcome = read(arguments.reports) if arguments.reports else run(tests)
    table = []
    for row, what in catalogue["rows"].items():
        results = [result for test in found[row] for result in outcome.get(test, [("not run", 0.0)])]
        kinds = sorted({kind for kind, _ in results})
        verdict = catalogue["not_yet"].get(row) or (kinds[0] if len(kinds) == 1 else ", ".join(kinds))
        seconds = round(sum(time for _, time in results), 2)
        table.append(
            {
                "row": row,
                "fault": what,
                "tests": found[row],
                "runs": len(results),
                "result": verdict,
                "seconds": seconds,
            }
        )
    record = {
        "command": "python benchmarks/catalogue.py" + (" --reports FAST SLOW LABEL" if arguments.reports else ""),
        "date": date.today().isoformat(),
        "hardware": f"{os.cpu_count()} shared {platform.machine()} cores, CPU",
        "versions": {name: version(name) for name in ("monai-rrr", "monai", "torch", "pytorch-ignite", "nibabel")},
        "rows": table,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "catalogue.json").write_text(json.dumps(record, indent=1) + "\n")
    lines = [
        "# Fault catalogue",
        "",
        f"{record['hardware']}, {record['date']}. Command: `{record['command']}`.",
        "",
        "| row | fault | tests | runs | result | seconds |",
        "|---|---|---|---|---|---|",
    ]
    for entry in table:
        names = "<br>".join(test.rpartition("::")[2] for test in entry["tests"]) or "-"
        cells = (entry["row"], entry["fault"], names, entry["runs"], entry["result"], entry["seconds"])
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    (RESULTS / "catalogue.md").write_text("\n".join(lines) + "\n")
    bad = [entry["row"] for entry in table if entry["result"] not in ("passed", *catalogue["not_yet"].values())]
    print(f"{len(table) - len(bad)} of {len(table)} rows as they should be; others: {bad or 'none'}")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
