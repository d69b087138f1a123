"""The recipe of the embedded demo: one shape on a plain background, drawn, captioned, learned and judged.

``python -m pixart.training.demo --help`` lists the stages.
"""
