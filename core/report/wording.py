"""How numbers and the verdict are put into words: one place, so that page, figures and summary never disagree."""

import math

from fedpath.core.report.data import Interval, ReportData, display_name

UNKNOWN = "—"


def fixed(value: float | None, digits: int = 2) -> str:
    """Return ``value`` with ``digits`` decimals; a dash when unknown."""
    return f"{value:.{digits}f}" if value is not None and math.isfinite(value) else UNKNOWN


def auc(value: float | None) -> str:
    """Return an AUC with two decimals; one below 1 is never rounded up to 1.00."""
    if value is not None and 0.995 <= value < 1:
        return "0.999" if value >= 0.9995 else fixed(value, 3)
    return fixed(value)


def bounds(interval: Interval | None) -> str:
    """Return "[0.81–0.92]"; empty where no interval is known."""
    if interval is None or interval.bounds is None:
        return ""
    low, high = interval.bounds
    return f"[{auc(low)}–{auc(high)}]"


def auc_label(interval: Interval | None) -> str:
    """Return "0.87 [0.81–0.92]", the form used in every figure and table."""
    return UNKNOWN if interval is None else f"{auc(interval.value)} {bounds(interval)}".strip()


def percent(value: float) -> str:
    """Return "94 %"; one below 100 % is never rounded up to it."""
    if 0.995 <= value < 1:
        return f"{min(round(value * 100, 1), 99.9):.1f} %"
    return f"{round(value * 100)} %"


def size(count: int) -> str:
    """Return a number of bytes in B, kB, MB or GB (powers of 1000)."""
    if count < 1000:
        return f"{count} B"
    power = min(int(math.log10(count) / 3 + 1e-9), 3)
    scaled = count / 1000**power
    return f"{scaled:.{0 if scaled >= 100 else 1}f} {('kB', 'MB', 'GB')[power - 1]}"


def duration(seconds: float) -> str:
    """Return seconds as "0.42 s", "12 s", "2 min 05 s" or "3 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def counted(count: int, noun: str) -> str:
    """Return "1 slide", "2 slides", "15,000 patches"."""
    plural = noun + ("es" if noun.endswith(("ch", "s")) else "s")
    return f"{count:,} {noun if count == 1 else plural}"


def listed(words: list[str]) -> str:
    """Return "A", "A and B" or "A, B and C"."""
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def verdict(data: ReportData) -> list[str]:
    """Return the result in plain sentences: the first is the headline, the others put it in proportion."""
    federated = data.federated
    if federated is None or federated.test_auc is None:
        return ["This run has no test result for a federated model."]
    sentences = [_headline(data, federated.test_auc)]
    unit = data.federation.unit
    if federated.predictions:
        targets_N, _ = federated.arrays()
        tested = counted(len(targets_N), f"test {unit}")
        shares = [f"{int((targets_N == c).sum())} {label}" for c, label in enumerate(data.federation.labels)]
        count = len({prediction.site for prediction in federated.predictions})
        hospitals = counted(count, "hospital")
        sentences.append(f"Measured on {tested} ({listed(shares)}) of {hospitals}, from patients no model trained on.")
    sentences += _against_local(data, federated.test_auc) + _against_pooled(data, federated.test_auc)
    return sentences


def _headline(data: ReportData, interval: Interval) -> str:
    federation = data.federation
    if len(federation.labels) > 2:
        return (
            f"The federated model reaches a mean one-vs-rest AUC of {auc_label(interval)} "
            f"over {len(federation.labels)} classes."
        )
    reach = ""
    if interval.bounds is not None:
        low, high = interval.bounds
        reach = f" (95 % confidence interval {percent(low).removesuffix(' %')}–{percent(high)})"
    return (
        f"The federated model ranks a random {federation.positive} {federation.unit} above a random "
        f"{federation.labels[0]} one in {percent(interval.value)} of cases{reach}."
    )


def _against_local(data: ReportData, interval: Interval) -> list[str]:
    mean = data.mean_of_local
    if mean is None:
        return []
    tested = [(model.test_auc.value, display_name(model)) for model in data.locals if model.test_auc is not None]
    if len(tested) <= 5:
        each = ", ".join(f"{name} {auc(value)}" for value, name in tested)
    else:
        (worst, weakest), (best, strongest) = min(tested), max(tested)
        each = f"from {auc(worst)}, {weakest}, to {auc(best)}, {strongest}"
    gain = round(interval.value, 2) - round(mean, 2)
    start = (
        f"On the same {data.federation.unit}s the hospitals alone reach an AUC of {auc(mean)} on average ({each}), "
        f"the federated model {auc(interval.value)}"
    )
    if round(gain, 2) <= 0:
        return [f"{start}: here federating did not help the average hospital."]
    if interval.bounds is None:
        return [f"{start}."]
    if interval.bounds[0] > mean:
        return [f"{start}; its whole confidence interval lies above that average."]
    return [
        f"{start}; its confidence interval reaches down to that average, so with this few test "
        f"{data.federation.unit}s the gain may be chance."
    ]


def _against_pooled(data: ReportData, interval: Interval) -> list[str]:
    if data.pooled is None or data.pooled.test_auc is None:
        return []
    value = data.pooled.test_auc.value
    gap = round(round(value, 2) - round(interval.value, 2), 2)
    if gap > 0:
        relation = f"{gap:.2f} above the federated model"
    elif gap < 0:
        relation = f"{-gap:.2f} below the federated model"
    else:
        relation = "the same as the federated model"
    return [f"Training on all data in one place, which a federation exists to avoid, reaches {auc(value)}: {relation}."]
