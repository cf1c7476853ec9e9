"""The demo's data and models: stand-ins that are made on the spot, so that the whole pipeline runs without a download.

Figures on them say that the pipeline works; they say nothing about DFBench.
"""
