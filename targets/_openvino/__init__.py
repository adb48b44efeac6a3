"""Parts that only OpenVINO needs."""
