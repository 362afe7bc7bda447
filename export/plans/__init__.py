"""Stage 7: TensorRT plans, built and compared. plan_from_onnx.py, above, is the stage."""
