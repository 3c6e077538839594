"""How an attempt ended, and what becomes of its job."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from mlbox.core.job import JobSpec
from mlbox.core.log import State, number
from mlbox.core.schedule.hindrance import LONGEST_BACKOFF

Json = dict[str, Any]
# For how long what could not be started is left to other hosts, by the reason (s). An unready host knows that it is.
_ELSEWHERE = {"unready": 60.0, "start": 300.0}


@dataclass(frozen=True)
class Outcome:
    """What is known of an attempt's end. `lost`: nobody saw it end, and why. Where nothing of it ran, why: `unready`
    is the host's trouble; `unstarted` may be the host's or its own; `error` is its own."""

    exit: int = 0
    signal: int = 0
    oom: bool = False
    timeout: bool = False
    stopped: bool = False  # by SIGTERM to its runner
    lost: str = ""
    unready: str = ""
    unstarted: str = ""
    error: str = ""


def verdict(spec: JobSpec, state: State, outcome: Outcome, now: float) -> Json:
    """The event that ends the running attempt. Pure; the caller appends it."""
    event = {"at": now, **_why(outcome)}
    if state.requested == "cancel_requested":
        return {**event, "event": "cancelled", "why": f"cancelled by {state.facts.get('by', 'its owner')}"}
    if state.requested == "preempt_requested" and (outcome.stopped or event["reason"]):  # else it came too late
        return {**event, "event": "preempted", "why": str(state.facts.get("for", "it made room for another job"))}
    if event["reason"] == "":
        return {**event, "event": "finished"}
    if event["reason"] == "unready":
        return {**event, "event": "lost", "not_before": now, "why": f"{outcome.unready}; this counts as no loss"}
    if outcome.unstarted or (event["reason"] == "lost" and spec.on_host_loss != "hold"):
        return {**event, **_lost(spec, state, str(event["why"]), now)}
    again = _again(spec, number(state.facts.get("retried")), str(event["reason"]), now)
    return {**event, "event": "failed"} if again is None else {**event, "event": "retry", "not_before": again}


def lost(spec: JobSpec, state: State, why: str, now: float) -> Json:
    """The event of a proven loss. A session that never was in line does not go there."""
    if "queue" not in state.facts:
        spec = replace(spec, on_host_loss="hold")
    return verdict(spec, state, Outcome(lost=why), now)


_BY_A_SHELL = {126: " (can't be executed)", 127: " (no such command)"}  # what they mean, also of our runner's


def _why(outcome: Outcome) -> Json:
    if outcome.error or outcome.unstarted:
        return {"reason": "start", "why": outcome.error or outcome.unstarted}
    if outcome.unready:
        return {"reason": "unready", "why": outcome.unready}
    if outcome.lost:
        return {"reason": "lost", "why": outcome.lost}
    end = {"exit": outcome.exit, "signal": outcome.signal}
    if outcome.stopped and not outcome.timeout:
        return {**end, "reason": "lost", "why": "its runner was told to stop"}
    if outcome.timeout:
        return {**end, "reason": "timeout", "why": "its time limit was reached"}
    if outcome.oom:
        return {**end, "reason": "oom", "why": "killed for want of memory"}
    if outcome.signal:
        return {**end, "reason": "signal", "why": f"ended by signal {outcome.signal}"}
    return {
        **end,
        "reason": "exit" if outcome.exit else "",
        "why": f"exit code {outcome.exit}{_BY_A_SHELL.get(outcome.exit, '')}",
    }


def elsewhere(state: State, host: str, now: float) -> tuple[str, float] | None:
    """Why this host leaves a waiting job to others, as it could not start it a moment ago, and for how many seconds
    still; None where it does not. `now`: by this host's clock, as it dated that end."""
    facts = state.facts
    if state.name != "lost" or facts.get("host") != host:
        return None
    time = _ELSEWHERE.get(str(facts.get("reason")), 0.0)
    left = float(facts.get("at", 0)) + time - now
    return (str(facts.get("why")), left) if 0 < left <= time else None


def _lost(spec: JobSpec, state: State, why: str, now: float) -> Json:
    """The first loss is nobody's fault, and it runs again at once. What is lost again and again may be what kills its
    hosts, or its keepers: it waits longer each time, and in the end has failed."""
    losses = number(state.facts.get("losses", 0)) + 1
    counted = {"losses": losses, "why": f"{why}; loss {losses} of at most {spec.max_losses}"}
    if losses >= spec.max_losses:
        return {**counted, "event": "failed"}
    return {**counted, "event": "lost", "not_before": now + (_backoff(spec, losses - 1) if losses > 1 else 0.0)}


def _again(spec: JobSpec, retried: int, reason: str, now: float) -> float | None:
    """When the attempt after this one may start (seconds since 1970); None if there is none. Attempts that made room,
    or were lost, count for nothing here."""
    if retried >= spec.retries or reason not in spec.retry_on:
        return None
    return now + _backoff(spec, retried + 1)


def _backoff(spec: JobSpec, time: int) -> float:
    """Seconds; `time` counts from 1."""
    return min(LONGEST_BACKOFF, float(spec.backoff * 2 ** min(time - 1, 12)))
