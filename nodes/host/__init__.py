"""The seam to ComfyUI: everything that knows the host's classes."""
