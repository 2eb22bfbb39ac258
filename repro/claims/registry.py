"""Registration of claims: one decorated function is all that a claim needs.

To add a claim, put it into the module of its subject beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, field

from repro.claims.verdict import Outcome, Ranges
from repro.dataset import Campaign

REPORT = "the report on vLLM #44363"

Test = Callable[[Campaign], list[Outcome]]
"""The outcomes of one campaign, one per comparison it allows; empty where it cannot tell."""

REGISTERED: list[Claim] = []


@dataclass
class Claim:
    """One sentence of the report; a decorator of the test that decides it."""

    id: str
    sentence: str
    _: KW_ONLY
    criterion: str  # when it is reproduced and when contradicted, by the whole 95% interval
    needs: str  # what must be measured for the test to decide
    source: str = REPORT
    some: bool = False  # "in some cases": one case is enough; otherwise it must hold in all
    over_all: Ranges | None = None  # for the mean over all cases, where single cases leave it open
    test: Test = field(init=False)

    def __call__(self, test: Test) -> Test:
        """Register the decorated test."""
        self.test = test
        REGISTERED.append(self)
        return test


claim = Claim
