"""Style and behaviour of the page, which the Space hands to Gradio as they are."""

from pathlib import Path

__all__ = ["ACTIONS", "ADDRESS", "CHART", "COPY", "LEAVING", "OWN_QUERY", "STYLE"]

HERE = Path(__file__).parent

STYLE = f"<style>{(HERE / 'page.css').read_text(encoding='utf-8')}</style>"
"""For the page's head: Gradio rewrites selectors of what it takes as style, and breaks those with ``:has``."""

ACTIONS = (HERE / "actions.js").read_text(encoding="utf-8")
"""Buttons inside markup tell what they do."""

CHART = (HERE / "chart.js").read_text(encoding="utf-8")
"""A cursor that reads the chart, by pointer or arrow keys."""

LEAVING = "() => sessionStorage.setItem('hub-merge', window.location.search)"
"""Signing in leaves the page and comes back without its query: it is kept meanwhile."""

COPY = (HERE / "copy.js").read_text(encoding="utf-8")

OWN_QUERY = """() => {
  const kept = sessionStorage.getItem('hub-merge');
  sessionStorage.removeItem('hub-merge');
  return kept ?? window.location.search;
}"""

ADDRESS = """(query) => {
  const theme = new URLSearchParams(window.location.search).get('__theme');
  const told = [query, theme && `__theme=${theme}`].filter(Boolean).join('&');
  window.history.replaceState(null, '', told ? `?${told}` : window.location.pathname);
}"""
"""Lets the address of the page be that of its state."""
