"""What ncnn alone needs."""
