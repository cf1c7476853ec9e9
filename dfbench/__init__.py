"""DFBench: deepfake image detection with large multimodal models (arXiv:2506.03007), and the detector MoA-DF."""

__version__ = "1.0.0"
