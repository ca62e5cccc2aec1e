"""Whether the chosen adapters fit together, and what their licences allow."""

from __future__ import annotations

from collections.abc import Sequence

from hub_merge.compat import Compatibility
from hub_merge.findings import Finding
from hub_merge.licenses import LicenseVerdict, SourceTerms
from hub_merge.studio.looking import Look
from hub_merge.studio.views.markup import Markup, el, folded_table, icon, joined

__all__ = ["allowable", "asks_for_unknown", "fit", "has_questions", "license_panel", "waiting"]


def waiting(text: str) -> Markup:
    """Return what stands in a step that has nothing to show yet."""
    return el("p", text, class_="hm-empty")


def fit(compatibility: Compatibility, ranks: Sequence[int] = ()) -> Markup:
    """Return the verdict, what it rests on, and every finding with its remedy."""
    report = compatibility.report
    single = len(compatibility.adapters) == 1
    if report.problems:
        kind, line = "bad", "These adapters cannot be merged as they are"
    elif single:
        kind, line = "info", "One adapter is a start: add another to merge"
    else:
        kind, line = "good", "These adapters fit together"
    many = len(report.cautions)
    if problems := len(report.problems):
        told = f"{problems} thing{'s stand' if problems > 1 else ' stands'} in the way"
    else:
        told = f"{many} thing{'s' * (many != 1)} to know" if many else "nothing to worry about"
    facts = [
        ("Base model", compatibility.base_model or "not settled"),
        ("Ranks", " + ".join(map(str, ranks)) or None),
        ("Exact rank", str(compatibility.total_rank)),
        ("Modules", str(sum(max(group.counts, default=0) for group in compatibility.coverage))),
    ]
    return joined(
        el("div", icon(kind), el("div", el("strong", line), el("span", told)), class_=f"hm-verdict hm-{kind}"),
        el(
            "dl",
            *(el("div", el("dt", name), el("dd", value)) for name, value in facts if value),
            class_="hm-facts hm-wide",
        ),
        _findings(report.problems, "What stands in the way", open_=True),
        _findings(report.cautions, "Good to know", open_=not report.problems and many <= 3),
        _coverage(compatibility),
    )


def _findings(findings: Sequence[Finding], title: str, *, open_: bool) -> Markup | None:
    if not findings:
        return None
    return el(
        "details",
        el("summary", f"{title} ({len(findings)})"),
        el("ul", *map(_finding, findings), class_="hm-findings"),
        open=open_,
        class_="hm-details",
    )


def _finding(found: Finding) -> Markup:
    subject = f"{found.adapter}: " if found.adapter else ""
    place = f" ({found.where})" if found.where else ""
    expected = f"; expected {found.expected}" if found.expected else ""
    overrule = f" Overrule: {found.overrule}." if found.overrule and found.severity == "problem" else ""
    return el(
        "li",
        icon("bad" if found.severity == "problem" else "warn"),
        el(
            "div",
            el("p", el("strong", subject), f"{found.seen}{place}{expected}."),
            el("p", f"{found.remedy}{overrule}".strip(), class_="hm-remedy") if found.remedy or overrule else None,
            el("code", found.code),
        ),
    )


def _coverage(compatibility: Compatibility) -> Markup | None:
    if len(compatibility.adapters) < 2 or not compatibility.coverage:
        return None
    head = el("tr", el("th", "Modules", scope="col"), *(el("th", name, scope="col") for name in compatibility.adapters))
    rows = [
        el("tr", el("th", group.group, scope="row"), *(el("td", count or "–") for count in group.counts))
        for group in compatibility.coverage
    ]
    return folded_table("Which modules each changes", "Modules by adapter", head, rows)


def license_panel(verdict: LicenseVerdict) -> Markup:
    """Return what the composite may be used for, what stands in the way, and what has to be kept."""
    kind = "bad" if any(not found.overrule for found in verdict.blockers) else "warn" if verdict.blockers else "good"
    return joined(
        el(
            "div",
            icon(kind),
            el("div", el("strong", f"Licence of the result: {verdict.line()}"), el("span", "help, not legal advice")),
            class_=f"hm-verdict hm-{kind}",
        ),
        el(
            "ul",
            *(
                el("li", icon("bad"), el("div", el("p", found.problem), el("p", found.remedy, class_="hm-remedy")))
                for found in verdict.blockers
            ),
            class_="hm-findings",
        )
        if verdict.blockers
        else None,
        el(
            "details",
            el("summary", "Where this comes from"),
            el("ul", *map(_source, verdict.sources), class_="hm-plain"),
            *(el("p", text, class_="hm-note") for text in (*verdict.corrections, *verdict.notes)),
            el(
                "ul",
                *(
                    el("li", el("strong", f"{duty.license}: "), f"{duty.says} ({duty.where})")
                    for duty in verdict.obligations
                ),
                class_="hm-plain",
            )
            if verdict.obligations
            else None,
            class_="hm-details",
        ),
    )


def _source(source: SourceTerms) -> Markup:
    found = f" ({source.found_in})" if source.stated and source.found_in else ""
    return el("li", el("strong", source.who), f" states {source.stated or 'no licence'}{found}")


def allowable(look: Look, allowed: Sequence[str]) -> list[str]:
    """Return the codes of findings that may be accepted, with those that were."""
    codes = [found.code for found in look.compatibility.report.problems if found.allowable]
    return list(dict.fromkeys([*codes, *allowed]))


def has_questions(look: Look, allowed: Sequence[str]) -> bool:
    """Tell whether a finding waits for a decision, or one was made."""
    return not look.compatibility.compatible or bool(allowed)


def asks_for_unknown(look: Look | None) -> bool:
    """Tell whether publishing needs the visitor to accept a licence that is not known."""
    return look is None or any(found.overrule for found in look.licenses.blockers)
