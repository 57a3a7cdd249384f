"""What mres claims of its speed, each figure beside its reference in the same run."""
