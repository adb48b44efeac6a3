"""What only OpenVINO needs."""
