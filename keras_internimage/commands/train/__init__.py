"""`internimage-train`: fine-tuning on a folder of images."""
