"""What the page in the browser shows and does, without any widget: the Space only wires this to Gradio.

Every function takes plain values and returns plain values or markup, so that all of it is tested without a browser.
"""
