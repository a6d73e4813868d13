"""Export of models to ONNX Runtime and OpenVINO, which run without torch."""

from typing import Literal

Runtime = Literal["auto", "torch", "onnx", "openvino"]
"""Runtime of a model; defined here without heavy imports for the command line."""
