#!/usr/bin/env python3
"""Runs hvac's own integration tests, and compares what passed with what is to pass.

`selected.txt` has a class and how many of its tests pass, a line each; `deselected.txt` the tests that
are left out, each with the reason. It fails when a test that is selected does not pass, when fewer are
run than are written down, or when a test is left out that is not there.
"""

import os
import pathlib
import subprocess
import sys
import xml.etree.ElementTree as ET

HERE = pathlib.Path(__file__).parent


def lines(name: str) -> list[tuple[str, str]]:
    """The lines of a list: what stands before and behind the first run of blanks."""
    text = (HERE / name).read_text(encoding="utf-8")
    rows = (line.split(maxsplit=1) for line in text.splitlines())
    return [(row[0], row[1] if len(row) > 1 else "") for row in rows if row and row[0][0] != "#"]


def main() -> int:
    """Runs the classes named on the command line, else all."""
    sources, results = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
    wanted = sys.argv[3:]
    selected = {cls: int(count) for cls, count in lines("selected.txt")}
    if wanted:
        selected = {cls: n for cls, n in selected.items() if cls.rpartition("::")[2] in wanted}
    deselected = lines("deselected.txt")
    unexplained = [test for test, reason in deselected if not reason]
    if unexplained or not selected:
        print("no reason, or no such class:", *unexplained, *wanted, file=sys.stderr)
        return 2
    (sources / "tests/config_files/generated").mkdir(exist_ok=True)
    # A generated file would be taken for a private key that others may read.
    os.umask(0o022)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-o", "addopts=", "-q"]
    command += ["--no-header", "--tb=short", "--show-capture=no", f"--junitxml={results}"]
    for test, _ in deselected:
        command += ["--deselect", f"tests/integration_tests/{test}"]
    command += [f"tests/integration_tests/{cls}" for cls in selected]
    subprocess.run(command, cwd=sources, check=False, timeout=1500)

    passed = dict.fromkeys(selected, 0)
    wrong = []
    for case in ET.parse(results).getroot().iter("testcase"):
        module, _, cls = case.get("classname", "").rpartition(".")
        path = module.removeprefix("tests.integration_tests.").replace(".", "/")
        name = f"{path}.py::{cls}"
        outcomes = {child.tag for child in case} & {"failure", "error", "skipped"}
        if outcomes or name not in passed:
            wrong.append(f"{name}::{case.get('name')}: {', '.join(outcomes) or 'not selected'}")
        else:
            passed[name] += 1
    fewer = [f"{cls}: {passed[cls]} of {count}" for cls, count in selected.items() if passed[cls] < count]
    more = [f"{cls}: {passed[cls]}, and {count} are written down" for cls, count in selected.items() if passed[cls] > count]
    for cls, count in passed.items():
        print(f"{count:4} passed  {cls}")
    print(f"{sum(passed.values()):4} passed, {len(deselected)} left out with a reason each")
    for title, texts in [("did not pass", wrong), ("fewer than before", fewer), ("write down", more)]:
        for text in texts:
            print(f"{title}: {text}", file=sys.stderr)
    return 1 if wrong or fewer or more else 0


sys.exit(main())
