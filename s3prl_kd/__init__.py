"""s3prl-kd."""
