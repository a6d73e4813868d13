"""A trained model outside of torch: ONNX and OpenVINO, from making and checking the files to segmenting with them."""
