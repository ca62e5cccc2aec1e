"""Tests of the page in the browser, and of what programs may ask of it."""
