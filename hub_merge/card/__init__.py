"""The model card of a composite, from its record alone; the same record gives the same bytes.

Whatever comes from elsewhere (names, licences, findings) is data to be shown, never Markdown, HTML, YAML or a template:
values that the template prints are escaped unless a helper of this package made them, and every one loses local paths
and tokens on its way.
"""

from hub_merge.card.facts import TASKS, weight_files
from hub_merge.card.markdown import Markdown, cleaned, code_span, escape, hub_id, link, to_yaml
from hub_merge.card.rendering import environment, render_card, render_licenses
from hub_merge.card.results import benchmark_files
from hub_merge.card.updating import END, START, published_card, update_card

__all__ = [
    "END",
    "START",
    "TASKS",
    "Markdown",
    "benchmark_files",
    "cleaned",
    "code_span",
    "environment",
    "escape",
    "hub_id",
    "link",
    "published_card",
    "render_card",
    "render_licenses",
    "to_yaml",
    "update_card",
    "weight_files",
]
