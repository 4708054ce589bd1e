"""The traffic witness: steady requests that nothing retries, every failure counted by kind, every stall told.

`with Witness(Plan(("https://app.example",))) as witness: witness.mark("commit app1")`, then `witness.result()`.
Command line: `scripts/witness --help`.
"""

from witness.check import check
from witness.load import Result, Witness
from witness.plan import Plan, PlanError
from witness.records import Event, Record, Records

__all__ = ["Event", "Plan", "PlanError", "Record", "Records", "Result", "Witness", "check"]
