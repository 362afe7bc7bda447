"""From a model in torch to an ONNX graph. exporters.py, above, chooses."""
