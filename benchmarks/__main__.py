"""`python -m benchmarks`: one table of ratios. `... scaling`: how time and memory grow. `... gpu`: times on a GPU."""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import time
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pandas as pd
import torch

from benchmarks import gpu, scaling
from benchmarks.rows import ROWS
from benchmarks.timing import Row


def main() -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("task", nargs="?", choices=("table", "scaling", "gpu"), default="table")
    parser.add_argument("--only", nargs="+", choices=tuple(ROWS), help="rows of the table to run (all)")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="torch threads (all cores)")
    parser.add_argument(
        "--output", type=Path, help="a .json, .csv or .md file for the table, a folder for scaling and gpu"
    )
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {given.threads} torch threads, "
    machine += f"torch {torch.__version__}"
    print(machine, flush=True)
    if given.task == "gpu":
        gpu.run(given.output or Path("gpu"))
        return
    if given.task == "scaling":
        scaling.run(given.output or Path("scaling"), machine)
        return
    started = time.perf_counter()
    rows: list[Row] = []
    for name in given.only or ROWS:
        for row in ROWS[name]():
            rows.append(row)
            print(f"  {time.perf_counter() - started:5.0f} s  {row.what}: {row.ratio:.3g}", flush=True)
    table = pd.DataFrame([row.cells() for row in rows])
    print(f"\n{_markdown(table)}\n\n{time.perf_counter() - started:.0f} s in all; medians, run in turns")
    if given.output is not None:
        _write(given.output, table, machine)


def _markdown(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _write(path: Path, table: pd.DataFrame, machine: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".json":
        path.write_text(json.dumps({"machine": machine, "rows": table.to_dict("records")}, indent=1) + "\n")
    elif path.suffix == ".csv":
        table.to_csv(path, index=False)
    else:
        path.write_text(f"{machine}\n\n{_markdown(table)}\n")


if __name__ == "__main__":
    main()
