"""The paper's claims, and whether a run's numbers support them.

A verdict comes from an interval alone: *supported* if all of it agrees with the claim,
*contradicted* if none of it does, else *not decided*.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from s3prl_kd.scoring.results import Estimate, Results

Verdict = Literal["supported", "contradicted", "not decided"]
PAPER = "arXiv 2210.16611"
# What the abstract of the paper reports for the jointly fine-tuned distilled student.
REDUCTION, ACCURACY, EER = 0.75, -0.001, 0.009
# Differences of floats: 0.899 - 0.9 is not below -0.001.
_ROUNDING = 1e-9


@dataclasses.dataclass
class Claim:
    """A claim, the verdict on it and the sentence that gives the numbers."""

    claim: str
    verdict: Verdict
    sentence: str


def percent(value: float, digits: int = 1, sign: bool = False) -> str:
    """A share of 1 as a percentage, without the sign %."""
    text = f"{100 * value:{'+' if sign else ''}.{digits}f}"
    # No "-0.0": a reader would look for the difference.
    return text.replace("-", "+" if sign else "") if float(text) == 0 else text


def points(difference: Estimate) -> str:
    """A difference of shares in percentage points, with its interval."""
    value = percent(difference.value, sign=True)
    if difference.low is None or difference.high is None:
        return f"{value} (no interval)"
    low, high = (percent(end, sign=True) for end in (difference.low, difference.high))
    return f"{value} [{low}, {high}]"


def at_least(difference: Estimate | None, bound: float) -> Verdict:
    """Whether a difference is ``bound`` or more."""
    if difference is None or difference.low is None or difference.high is None:
        return "not decided"
    if difference.low >= bound - _ROUNDING:
        return "supported"
    return "contradicted" if difference.high < bound - _ROUNDING else "not decided"


def at_most(difference: Estimate | None, bound: float) -> Verdict:
    """Whether a difference is ``bound`` or less."""
    if difference is None or difference.low is None or difference.high is None:
        return "not decided"
    if difference.high <= bound + _ROUNDING:
        return "supported"
    return "contradicted" if difference.low > bound + _ROUNDING else "not decided"


def _better(metric: str, difference: Estimate) -> Verdict:
    # Strictly better: an interval that touches 0 decides nothing.
    if difference.low is None or difference.high is None:
        return "not decided"
    gain = (difference.low, difference.high)
    if metric != "accuracy":
        gain = (-difference.high, -difference.low)
    if gain[0] > 0:
        return "supported"
    return "contradicted" if gain[1] < 0 else "not decided"


_NAMES = {"accuracy": "KWS accuracy", "eer": "SV EER"}
_TRAININGS = {"frozen": "frozen", "alone": "fine-tuned alone", "joint": "fine-tuned jointly"}


def _verb(verdict: Verdict) -> str:
    return {
        "supported": "these numbers support it",
        "contradicted": "these numbers contradict it",
        "not decided": "these numbers do not decide it: the interval holds both answers",
    }[verdict]


def judge(results: Results) -> list[Claim]:
    """Every claim with its verdict; a claim whose systems were not scored says so."""
    student, teacher = results.roles["distilled"], results.roles["teacher"]
    joint = results.row(student, "joint")
    judged: list[Claim] = []

    claim = f"the student has nearly {percent(REDUCTION, 0)} % fewer parameters than the teacher"
    row = joint or next((r for r in results.rows if r.system == student), None)
    if row is None or row.share_of_teacher is None:
        judged.append(_unscored(claim, f"{student} or {teacher}"))
    else:
        fewer = 1 - row.share_of_teacher
        verdict: Verdict = "supported" if round(fewer, 2) >= REDUCTION else "contradicted"
        judged.append(
            Claim(claim, verdict, f"{student} has {percent(fewer)} % fewer: {_verb(verdict)}.")
        )

    to_teacher = joint.differences.get("teacher", {}) if joint else {}
    for metric, claim, verdict in (
        (
            "accuracy",
            "jointly fine-tuned, the student loses no more than "
            f"{percent(-ACCURACY)} points of KWS accuracy to the teacher",
            at_least(to_teacher.get("accuracy"), ACCURACY),
        ),
        (
            "eer",
            f"jointly fine-tuned, the student's SV EER is no more than {percent(EER)} points "
            "above the teacher's",
            at_most(to_teacher.get("eer"), EER),
        ),
    ):
        if metric not in to_teacher:
            judged.append(_unscored(claim, f"{student} or {teacher}, fine-tuned jointly"))
            continue
        judged.append(
            Claim(
                claim,
                verdict,
                f"{student} minus {teacher}, {_NAMES[metric]}: {points(to_teacher[metric])} "
                f"points; {_verb(verdict)}.",
            )
        )

    for system in dict.fromkeys((teacher, student)):
        for metric, name in _NAMES.items():
            claim = f"fine-tuned beats frozen ({system}, {name})"
            parts = []
            for training in ("alone", "joint"):
                row = results.row(system, training)
                difference = row.differences.get("frozen", {}).get(metric) if row else None
                if difference is not None:
                    parts.append((training, difference, _better(metric, difference)))
            if not parts:
                judged.append(_unscored(claim, f"{system}, fine-tuned or frozen"))
                continue
            verdicts = {verdict for *_, verdict in parts}
            verdict = verdicts.pop() if len(verdicts) == 1 else "not decided"
            told = "; ".join(
                f"{_TRAININGS[training]} minus frozen {points(difference)} points ({own})"
                for training, difference, own in parts
            )
            judged.append(Claim(claim, verdict, f"{told}."))

    # Not the paper's own table, but what its title rests on: distilling must be worth it.
    scratch = results.roles["scratch"]
    for training, told in _TRAININGS.items():
        row = results.row(student, training)
        for metric, name in _NAMES.items():
            difference = row.differences.get("scratch", {}).get(metric) if row else None
            claim = f"distilled beats from scratch ({told}, {name}; not a claim of the paper)"
            if difference is None:
                judged.append(_unscored(claim, f"{student} or {scratch}, {told}"))
                continue
            verdict = _better(metric, difference)
            judged.append(
                Claim(
                    claim,
                    verdict,
                    f"{student} minus {scratch}: {points(difference)} points; {_verb(verdict)}.",
                )
            )
    return judged


def _unscored(claim: str, what: str) -> Claim:
    return Claim(claim, "not decided", f"Not scored in this run: {what}.")
