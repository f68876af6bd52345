"""Cases that fail, by kind: `pytest tests/faults --junitxml BEFORE.xml`, at another commit AFTER.xml, then

python tests/faults/count.py BEFORE.xml AFTER.xml
"""

import sys
import xml.etree.ElementTree as ET
from collections import Counter


def counts(path: str) -> tuple[Counter[str], Counter[str]]:
    """Cases and failures of every test function."""
    cases: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for case in ET.parse(path).iter("testcase"):
        kind = case.get("name", "").partition("[")[0].removeprefix("test_").replace("_", " ")
        cases[kind] += 1
        failures[kind] += case.find("failure") is not None or case.find("error") is not None
    return cases, failures


def main() -> None:
    (_, before), (cases, after) = (counts(path) for path in sys.argv[1:3])
    print("| kind | cases | failed before | failed after |\n|---|---|---|---|")
    for kind, count in cases.items():
        print(f"| {kind} | {count} | {before[kind]} | {after[kind]} |")
    print(f"| all | {cases.total()} | {before.total()} | {after.total()} |")


if __name__ == "__main__":
    main()
