"""Models as graphs for ONNX Runtime and OpenVINO, and segmenting with them where there is no torch."""

from typing import Literal

Runtime = Literal["auto", "torch", "onnx", "openvino"]
"""Who computes. It stands here, where nothing heavy is loaded, for the command lines."""
