"""The command lines: `internimage-train`, `internimage-predict`, `internimage-export`."""
