"""Registration of claims: one decorated function is all that a claim needs.

To add a claim, put it into the module of its subject beside this one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from repro.claims.verdict import Outcome
from repro.dataset import Campaign

REPORT = "the report on vLLM #44363"

Test = Callable[[Campaign], list[Outcome]]
"""The outcomes of one campaign, one per comparison it allows; empty where it cannot tell."""

REGISTERED: list[Claim] = []


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One sentence of the report and the test that decides it.

    Attributes
    ----------
    id, sentence, source : str
        A short name, the claim, and its origin.
    criterion : str
        When the claim counts as reproduced and when as contradicted, by the whole 95% interval.
    needs : str
        What must be measured for the test to decide.
    test : callable
        See `Test`.
    some : bool
        The claim says "in some cases": one case is enough. Otherwise it must hold in all.
    """

    id: str
    sentence: str
    criterion: str
    needs: str
    test: Test
    source: str = REPORT
    some: bool = False


def claim(
    id: str,
    sentence: str,
    *,
    criterion: str,
    needs: str,
    source: str = REPORT,
    some: bool = False,
) -> Callable[[Test], Test]:
    """Register the decorated test as a claim; see `Claim` for the parameters."""

    def register(test: Test) -> Test:
        REGISTERED.append(
            Claim(
                id=id,
                sentence=sentence,
                criterion=criterion,
                needs=needs,
                test=test,
                source=source,
                some=some,
            )
        )
        return test

    return register
