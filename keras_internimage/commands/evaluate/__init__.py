"""`internimage-evaluate`: how well a finished model does on a folder of images."""
