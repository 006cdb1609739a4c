"""What a Python caller uses: `poison_batch`, `Poisoner`, `fit_start`, `export_onnx`, and what this machine can do."""
